/** A React hook: one socket for as long as a component is mounted, and what it is doing. */

import { useEffect, useState, useSyncExternalStore } from "react";
import { MainstaySocket, type Options, type Status } from "./index.js";

/**
 * Opens a socket when the component mounts, closes it when the component unmounts, and renders again when the status changes.
 * Another `url` makes another socket; without a `url` there is no socket, and the status is `suspended`. `options` are read when a
 * socket is made.
 *
 * @example
 * const { socket, status } = useMainstay("wss://example.com/chat");
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
