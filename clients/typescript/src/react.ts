/** A React hook: one socket for as long as a component is mounted, and what it is doing. */

import { useEffect, useState, useSyncExternalStore } from "react";
import { MainstaySocket, type Options, type Status } from "./index.js";

/**
 * Opens a socket when the component mounts, closes it when it goes, and renders again when the status changes.
 * Another `url` is another socket; without one there is none yet, and the status is `suspended`. `options` are read when a
 * socket is made.
 */
export function useMainstay(url: string | null | undefined, options?: Options & { protocols?: string | string[] }): { socket: MainstaySocket | undefined; status: Status } {
  const [socket, setSocket] = useState<MainstaySocket>();
  useEffect(() => {
    if (url == null) return;
    const { protocols = [], ...rest } = options ?? {};
    const opened = new MainstaySocket(url, protocols, rest);
    setSocket(opened);
    return () => {
      opened.close();
      setSocket(undefined);
    };
  }, [url]);
  const none: Status = url == null ? "suspended" : "connecting";
  const status = useSyncExternalStore(
    (changed) => socket?.on("status", changed) ?? (() => {}),
    () => socket?.status ?? none,
    () => none,
  );
  return { socket, status };
}
