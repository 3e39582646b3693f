// @fastify/http-proxy as its README passes WebSockets on.
import proxy from "@fastify/http-proxy";
import fastify from "fastify";
import { flags } from "./flags.mjs";

const { host, port, upstream } = flags();
const app = fastify();
await app.register(proxy, { upstream, websocket: true });
await app.listen({ host, port });
