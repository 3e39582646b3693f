/** A server of Yjs, for tests. */

import * as decoding from "lib0/decoding";
import * as encoding from "lib0/encoding";
import type { WebSocket } from "ws";
import * as sync from "y-protocols/sync";
import type * as Y from "yjs";

/** The part of y-websocket's server that documents need: the state to each new client, and each update to all others. */
export function shareDocument(doc: Y.Doc): (socket: WebSocket) => void {
  const message = (write: (encoder: encoding.Encoder) => void) => {
    const encoder = encoding.createEncoder();
    encoding.writeVarUint(encoder, 0);
    write(encoder);
    return encoding.toUint8Array(encoder);
  };
  return (socket) => {
    const pass = (update: Uint8Array, origin: unknown) => origin !== socket && socket.send(message((to) => sync.writeUpdate(to, update)));
    doc.on("update", pass);
    socket.on("close", () => doc.off("update", pass));
    socket.on("message", (data: Buffer) => {
      const decoder = decoding.createDecoder(data);
      if (decoding.readVarUint(decoder) !== 0) return;
      const answer = message((to) => sync.readSyncMessage(decoder, to, doc, socket));
      if (answer.length > 1) socket.send(answer);
    });
    socket.send(message((to) => sync.writeSyncStep1(to, doc)));
  };
}
