/**
 * Metrics: the counts that a server keeps, the figures that it sums on request, and the text that Prometheus reads.
 *
 * Messages are counted by the numbers that their sessions give them, so counting adds no work to a message.
 */

/** The counts since the start of the server. */
export class Counts {
  /** Connections that finished the opening handshake. */
  opened = 0;
  /** Connections that got no session: refused, lost or late. */
  openingsFailed = 0;
  /** Connections whose session is in another process. */
  passedOn = 0;
  /** Refused clients, by reason. */
  refused = { full: 0, address: 0, origin: 0, draining: 0, hook: 0, credentials: 0 };
  /** Connections that the server ended for `idleTimeoutMs` or `maxLifetimeMs`. */
  sentAway = { idle: 0, lifetime: 0 };
  /** HELLOs, by outcome. */
  attaches = { new: 0, resumed: 0, lost: 0, refused: 0 };
  /** Clients that the heartbeat called dead, by evidence. */
  deadPeers = { silent: 0, frozen: 0, stalled: 0 };
  /** Connections that broke a protocol, by layer. */
  protocolErrors = { websocket: 0, session: 0 };
  /** Messages: delivered to handlers (`in`) and accepted for clients (`out`). */
  messages = { in: 0, out: 0 };
  /** Gaps: of lost sessions (`session`), and those that clients reported (`client`). */
  gaps = { session: 0, client: 0 };
  /** Sessions that the server gave up, by reason. */
  evicted = { full: 0, slow: 0, draining: 0 };
  /** Sessions whose resume window passed. */
  expired = 0;
  /** Messages to members of rooms that had no room for them. */
  slow = { disconnected: 0, skipped: 0 };
}

/** The current figures, and the counts since the start. */
export interface Stats extends Counts {
  /** Open WebSocket connections. */
  connections: number;
  /** Sessions that have not ended: `attached` and `parked` ones, and `plain` clients. */
  sessions: { attached: number; parked: number; plain: number };
  /** Rooms that have members. */
  rooms: number;
  /** Payload bytes that wait for clients, for acknowledgements or for handlers. */
  queueBytes: number;
  /** Whether the server closes. */
  isDraining: boolean;
}

/** One metric of Prometheus' text format. */
interface Family {
  name: string;
  type: "gauge" | "counter";
  help: string;
  values: { labels: string; value: number }[];
}

/** Writes the figures in Prometheus' text format. */
export function metricsOf(stats: Stats): string {
  return familiesOf(stats)
    .map(({ name, type, help, values }) => {
      const lines = values.map(({ labels, value }) => `${name}${labels} ${value}\n`);
      return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join("")}`;
    })
    .join("");
}

function familiesOf(stats: Stats): Family[] {
  const { attached, parked, plain } = stats.sessions;
  const byState = [{ labels: '{state="attached"}', value: attached + plain }, { labels: '{state="parked"}', value: parked }];
  const queueBytes = [{ labels: '{leg="client"}', value: stats.queueBytes }];
  const gauge = (name: string, help: string, value: number): Family => ({ name: `mainstay_${name}`, type: "gauge", help, values: [{ labels: "", value }] });
  const counter = (name: string, help: string, value: number): Family => ({ name: `mainstay_${name}_total`, type: "counter", help, values: [{ labels: "", value }] });
  const each = (name: string, label: string, help: string, values: object): Family => {
    const labelled = Object.entries(values).map(([key, value]) => ({ labels: `{${label}="${key}"}`, value }));
    return { name: `mainstay_${name}_total`, type: "counter", help, values: labelled };
  };
  return [
    gauge("connections", "open WebSocket connections", stats.connections),
    gauge("sessions", "sessions that have not ended, plain clients included", attached + parked + plain),
    { name: "mainstay_sessions_by_state", type: "gauge", help: "sessions by state", values: byState },
    gauge("draining", "1 while the server closes", +stats.isDraining),
    gauge("rooms", "rooms that have members", stats.rooms),
    { name: "mainstay_queue_bytes", type: "gauge", help: "payload bytes that wait", values: queueBytes },
    counter("connections_opened", "connections that finished the opening handshake", stats.opened),
    counter("handshakes_failed", "connections that became no session: refused, lost or late", stats.openingsFailed),
    counter("connections_passed_on", "connections whose session is in another process of this machine", stats.passedOn),
    each("refused", "reason", "clients refused", stats.refused),
    each("connections_drained", "reason", "connections that were drained because they were idle or old", stats.sentAway),
    each("attaches", "outcome", "HELLOs", stats.attaches),
    each("dead_peers", "evidence", "clients that the heartbeat called dead", stats.deadPeers),
    each("protocol_errors", "layer", "connections that broke a protocol", stats.protocolErrors),
    each("messages", "direction", "messages delivered to handlers (in) and accepted for clients (out)", stats.messages),
    each("gaps", "cause", "gaps that were reported", stats.gaps),
    each("sessions_evicted", "reason", "sessions that the server gave up", stats.evicted),
    counter("sessions_expired", "sessions whose resume window passed", stats.expired),
    each("room_messages_not_sent", "outcome", "messages to members that had no room for them", stats.slow),
  ];
}
