/** A React hook: one socket for as long as a component is mounted, and what it is doing. */

import { useEffect, useState, useSyncExternalStore } from "react";
import { MainstaySocket, type Options, type Status } from "./index.js";

/**
 * Opens a socket when the component mounts, closes it when it goes, and renders again when the status changes.
 * Another `url` is another socket; `options` are read when it is made.
 */
export function useMainstay(url: string, options?: Options & { protocols?: string | string[] }): { socket: MainstaySocket | undefined; status: Status } {
  const [socket, setSocket] = useState<MainstaySocket>();
  useEffect(() => {
    const { protocols = [], ...rest } = options ?? {};
    const opened = new MainstaySocket(url, protocols, rest);
    setSocket(opened);
    return () => opened.close();
  }, [url]);
  const status = useSyncExternalStore(
    (changed) => socket?.on("status", changed) ?? (() => {}),
    () => socket?.status ?? "connecting",
    () => "connecting" as const,
  );
  return { socket, status };
}
