/**
 * Figures: what a server counts as it goes, what is added up when somebody asks, and the text that Prometheus reads.
 *
 * Messages are counted by their sessions' own numbers, so that counting costs a message nothing.
 */

import type { Server } from "./server.js";

/** What only grows. */
export class Counts {
  opened = 0;
  openingsFailed = 0;
  /** Connections whose session is in another process. */
  passedOn = 0;
  refused = { full: 0, address: 0, origin: 0, draining: 0, hook: 0, credentials: 0 };
  sentAway = { idle: 0, lifetime: 0 };
  attaches = { new: 0, resumed: 0, lost: 0, refused: 0 };
  deadPeers = { silent: 0, frozen: 0, stalled: 0 };
  protocolErrors = { websocket: 0, session: 0 };
  /** The messages of sessions that are over. */
  messages = { in: 0, out: 0 };
  gaps = { session: 0, client: 0 };
  evicted = { full: 0, slow: 0, draining: 0 };
  expired = 0;
  /** Members of rooms that were too far behind for a message. */
  slow = { closed: 0, skipped: 0 };
}

/** Figures of now, and counts since the start. */
export interface Stats extends Counts {
  /** WebSocket connections that are open. */
  connections: number;
  /** Sessions that are not over: `attached` and `parked` ones, and `plain` clients. */
  sessions: { attached: number; parked: number; plain: number };
  rooms: number;
  /** Payload bytes that wait for clients, for acknowledgements or for handlers. */
  queueBytes: number;
  isDraining: boolean;
}

export function statsOf(server: Server): Stats {
  const { counts } = server;
  const messages = { ...counts.messages };
  const sessions = { attached: 0, parked: 0, plain: 0 };
  let queueBytes = 0;
  for (const { machine, mode } of server.drivers.values()) {
    const [received, sent] = machine.traffic;
    messages.in += received;
    messages.out += sent;
    queueBytes += machine.queueBytes;
    if (mode === "plain") sessions.plain++;
    else if (machine.connection === undefined) sessions.parked++;
    else sessions.attached++;
  }
  return { ...structuredClone(counts), messages, sessions, queueBytes, connections: server.connectionCount(), rooms: server.rooms.names.length, isDraining: server.isDraining };
}

/** One family: name, type, what it counts, its values by labels. */
type Family = [name: string, type: "gauge" | "counter", help: string, values: [labels: string, value: number][]];

export function metricsOf(stats: Stats): string {
  return familiesOf(stats)
    .map(([name, type, help, values]) => {
      const lines = values.map(([labels, value]) => `${name}${labels} ${value}\n`);
      return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join("")}`;
    })
    .join("");
}

function familiesOf(stats: Stats): Family[] {
  const { attached, parked, plain } = stats.sessions;
  const gauge = (name: string, help: string, value: number): Family => [`mainstay_${name}`, "gauge", help, [["", value]]];
  const counter = (name: string, help: string, value: number): Family => [`mainstay_${name}_total`, "counter", help, [["", value]]];
  const each = (name: string, label: string, help: string, values: object): Family => {
    return [`mainstay_${name}_total`, "counter", help, Object.entries(values).map(([key, value]) => [`{${label}="${key}"}`, value])];
  };
  return [
    gauge("connections", "WebSocket connections that are open", stats.connections),
    gauge("sessions", "sessions that are not over, plain clients included", attached + parked + plain),
    ["mainstay_sessions_by_state", "gauge", "sessions by state", [['{state="attached"}', attached + plain], ['{state="parked"}', parked]]],
    gauge("draining", "1 while the server closes", +stats.isDraining),
    gauge("rooms", "rooms that have members", stats.rooms),
    ["mainstay_queue_bytes", "gauge", "payload bytes that wait", [['{leg="client"}', stats.queueBytes]]],
    counter("connections_opened", "connections that finished the opening handshake", stats.opened),
    counter("handshakes_failed", "connections that became no session: refused, lost or late", stats.openingsFailed),
    counter("connections_passed_on", "connections whose session is in another process of this machine", stats.passedOn),
    each("refused", "reason", "clients refused", stats.refused),
    each("connections_drained", "reason", "connections that were drained because they were idle or old", stats.sentAway),
    each("attaches", "outcome", "HELLOs", stats.attaches),
    each("dead_peers", "evidence", "clients called dead by the heartbeat", stats.deadPeers),
    each("protocol_errors", "layer", "connections that broke a protocol", stats.protocolErrors),
    each("messages", "direction", "messages handed to handlers (in) and accepted for clients (out)", stats.messages),
    each("gaps", "cause", "gaps that were told", stats.gaps),
    each("sessions_evicted", "reason", "sessions that were given up", stats.evicted),
    counter("sessions_expired", "sessions whose resume window passed", stats.expired),
    each("room_messages_not_sent", "outcome", "messages to members that were too far behind", stats.slow),
  ];
}
