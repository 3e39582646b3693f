/** Extends Fastify's types: the handler of a `{ websocket: true }` route receives a session. */

import type {
  ContextConfigDefault,
  FastifyBaseLogger,
  FastifyInstance,
  FastifyRequest,
  FastifySchema,
  FastifyTypeProvider,
  FastifyTypeProviderDefault,
  RawReplyDefaultExpression,
  RawRequestDefaultExpression,
  RawServerBase,
  RawServerDefault,
  RequestGenericInterface,
  RouteGenericInterface,
} from "fastify";
import type { WebSocket, WebSocketServer } from "ws";
import type { Mainstay } from "./mainstay.js";
import type { MainstayRouteOptions } from "./options.js";
import type { Session } from "./session.js";

/**
 * The handler of a WebSocket route. The plugin calls it once for each session, not for each connection. The plugin does not
 * wait for a promise that the handler returns. If the handler throws or the promise rejects, its session ends with 1011.
 *
 * @example
 * const echo: SessionHandler = async (session) => {
 *   for await (const data of session) await session.send(data);
 * };
 */
export type SessionHandler<
  RawServer extends RawServerBase = RawServerDefault,
  RawRequest extends RawRequestDefaultExpression<RawServer> = RawRequestDefaultExpression<RawServer>,
  RequestGeneric extends RequestGenericInterface = RequestGenericInterface,
  ContextConfig = ContextConfigDefault,
  SchemaCompiler extends FastifySchema = FastifySchema,
  TypeProvider extends FastifyTypeProvider = FastifyTypeProviderDefault,
  Logger extends FastifyBaseLogger = FastifyBaseLogger,
> = (
  this: FastifyInstance,
  session: Session,
  request: FastifyRequest<RequestGeneric, RawServer, RawRequest, SchemaCompiler, TypeProvider, ContextConfig, Logger>,
) => unknown;

declare module "fastify" {
  interface RouteShorthandOptions<RawServer extends RawServerBase = RawServerDefault> {
    /** Serves WebSocket upgrades: the handler receives a session. @default false */
    websocket?: boolean;
    /** Options of this WebSocket route, which override those of the plugin's registration. */
    mainstay?: MainstayRouteOptions;
  }

  interface FastifyInstance<RawServer, RawRequest, RawReply, Logger, TypeProvider> {
    /** All sessions: rooms, broadcast, presence and metrics. */
    mainstay: Mainstay;

    /** The underlying `ws` server. */
    websocketServer: WebSocketServer;

    /** Opens a plain connection without a network, for tests: runs the hooks and the handler. */
    injectWS(
      path?: string,
      upgradeContext?: Partial<RawRequest>,
      options?: { onInit?: (socket: WebSocket) => void; onOpen?: (socket: WebSocket) => void },
    ): Promise<WebSocket>;

    route<
      RouteGeneric extends RouteGenericInterface = RouteGenericInterface,
      ContextConfig = ContextConfigDefault,
      const SchemaCompiler extends FastifySchema = FastifySchema,
    >(
      options: Omit<
        RouteOptions<RawServer, RawRequest, RawReply, RouteGeneric, ContextConfig, SchemaCompiler, TypeProvider, Logger>,
        "handler" | "websocket"
      > & {
        websocket: true;
        handler: SessionHandler<RawServer, RawRequest, RouteGeneric, ContextConfig, SchemaCompiler, TypeProvider, Logger>;
      },
    ): FastifyInstance<RawServer, RawRequest, RawReply, Logger, TypeProvider>;
  }

  interface RouteShorthandMethod<
    RawServer extends RawServerBase = RawServerDefault,
    RawRequest extends RawRequestDefaultExpression<RawServer> = RawRequestDefaultExpression<RawServer>,
    RawReply extends RawReplyDefaultExpression<RawServer> = RawReplyDefaultExpression<RawServer>,
    TypeProvider extends FastifyTypeProvider = FastifyTypeProviderDefault,
    Logger extends FastifyBaseLogger = FastifyBaseLogger,
  > {
    <
      RequestGeneric extends RequestGenericInterface = RequestGenericInterface,
      ContextConfig = ContextConfigDefault,
      SchemaCompiler extends FastifySchema = FastifySchema,
      InnerLogger extends Logger = Logger,
    >(
      path: string,
      options: RouteShorthandOptions<RawServer, RawRequest, RawReply, RequestGeneric, ContextConfig, SchemaCompiler, TypeProvider, InnerLogger> & {
        websocket: true;
      },
      handler: SessionHandler<RawServer, RawRequest, RequestGeneric, ContextConfig, SchemaCompiler, TypeProvider, InnerLogger>,
    ): FastifyInstance<RawServer, RawRequest, RawReply, InnerLogger, TypeProvider>;
  }

  interface RouteOptions<
    RawServer extends RawServerBase = RawServerDefault,
    RawRequest extends RawRequestDefaultExpression<RawServer> = RawRequestDefaultExpression<RawServer>,
    RawReply extends RawReplyDefaultExpression<RawServer> = RawReplyDefaultExpression<RawServer>,
    RouteGeneric extends RouteGenericInterface = RouteGenericInterface,
    ContextConfig = ContextConfigDefault,
    SchemaCompiler = FastifySchema,
    TypeProvider extends FastifyTypeProvider = FastifyTypeProviderDefault,
    Logger extends FastifyBaseLogger = FastifyBaseLogger,
  > {
    /** Options of this WebSocket route, which override those of the plugin's registration. */
    mainstay?: MainstayRouteOptions;
    /** Serves the upgrades of a route that answers HTTP requests too. */
    wsHandler?: SessionHandler<RawServer, RawRequest, RouteGeneric, ContextConfig, SchemaCompiler & FastifySchema, TypeProvider, Logger>;
  }
}
