/** The choice of a subprotocol. Source: `docs/PROTOCOL.md` "Negotiation". */

const OURS = "mainstay.v1";
/** What a client offers that has no name of its own, so that a server must not leave a browser without a choice. */
const PLAIN = "plain";

/** Whether a subprotocol says that sessions are spoken. */
export function isOurs(name: string): boolean {
  return name === OURS || name.startsWith(`${OURS}+`);
}

/** The application's part of a subprotocol's name, if it has one. */
export function applicationName(name: string): string | undefined {
  if (name === PLAIN) return;
  return (isOurs(name) ? name.slice(OURS.length + 1) : name) || undefined;
}

/** Sessions win over plain, then the application's order. False: none. */
export function choose(offered: Iterable<string>, wanted: string[] | undefined): string | false {
  const list = [...offered];
  const isWanted = (name: string) => !wanted || wanted.includes(name);
  const ours = list.find((name) => isOurs(name) && isWanted(applicationName(name) ?? wanted?.[0] ?? ""));
  const plain = wanted ? wanted.find((name) => list.includes(name)) : list[0];
  return ours ?? plain ?? (list.includes(PLAIN) && PLAIN);
}
