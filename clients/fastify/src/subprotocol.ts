/** Chooses the subprotocol of a connection. Source: `docs/PROTOCOL.md` "Negotiation". */

const OURS = "mainstay.v1";
/**
 * A client whose application has no subprotocol offers this beside `mainstay.v1`: a browser fails a connection whose server
 * chooses none of the offered names.
 */
const PLAIN = "plain";

/** Returns whether a connection with this subprotocol carries a session. */
export function isOurs(name: string): boolean {
  return name === OURS || name.startsWith(`${OURS}+`);
}

/** Returns the application's part of a subprotocol's name; undefined if it has none. */
export function applicationName(name: string): string | undefined {
  if (name === PLAIN) return;
  return (isOurs(name) ? name.slice(OURS.length + 1) : name) || undefined;
}

/**
 * Chooses among the requested subprotocols: sessions before plain WebSocket, then in the application's order. Returns false
 * if none fits.
 */
export function choose(requested: Iterable<string>, wanted: string[] | undefined): string | false {
  const list = [...requested];
  const isWanted = (name: string) => !wanted || wanted.includes(name);
  const ours = list.find((name) => isOurs(name) && isWanted(applicationName(name) ?? wanted?.[0] ?? ""));
  const plain = wanted ? wanted.find((name) => list.includes(name)) : list[0];
  return ours ?? plain ?? (list.includes(PLAIN) && PLAIN);
}
