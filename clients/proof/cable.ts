/** The cable between a client and a server, which a test can break: `mainstay chaos`. */

import { chaos, type ChaosProxy } from "@mainstay/chaos";
import { MAINSTAY } from "./gateway.js";

/** A cable to a server on this port. */
export const cableTo = (port: number): Promise<ChaosProxy> => chaos({ upstream: `127.0.0.1:${port}`, binary: MAINSTAY });

/** Resets every connection, and refuses new ones until `liftAll`. */
export async function sever(cable: ChaosProxy): Promise<void> {
  await cable.inject({ kind: "refuse" });
  await cable.reset();
}

/** Returns the number of connections so far. */
export const countOf = async (cable: ChaosProxy): Promise<number> => (await cable.timeline()).filter(({ event }) => event === "opened").length;
