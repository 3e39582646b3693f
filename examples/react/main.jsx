import { useMainstay } from "@mainstay/client/react";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

function Echo({ url }) {
  const { socket, status } = useMainstay(url);
  const [lines, setLines] = useState([]);

  useEffect(() => {
    if (!socket) return;
    const listener = ({ data }) => setLines((lines) => [...lines, `answer: ${data}`]);
    socket.addEventListener("message", listener);
    socket.send("hello"); // kept until it can leave
    return () => socket.removeEventListener("message", listener);
  }, [socket]);

  return (
    <>
      <p>{status === "attached" ? "connected" : status}</p>
      <ul>{lines.map((line, index) => <li key={index}>{line}</li>)}</ul>
      <button disabled={!socket} onClick={() => socket.send("hello again")}>Send</button>
    </>
  );
}

createRoot(document.querySelector("#root")).render(<Echo url="ws://127.0.0.1:8088/echo" />);
