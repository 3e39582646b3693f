/** A web server with one page, which runs the client as bundled by an application. */

import http from "node:http";
import net from "node:net";
import { build } from "esbuild";

const PAGE = '<!doctype html><title>proof</title><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>';

export class Site {
  private constructor(
    private server: http.Server,
    readonly origin: string,
  ) {}

  static async open(): Promise<Site> {
    const entry = new URL("page.ts", import.meta.url).pathname;
    const { outputFiles } = await build({ entryPoints: [entry], bundle: true, format: "esm", target: "es2022", write: false });
    const script = outputFiles[0]!.text;
    const server = http.createServer(({ url }, response) => {
      const isScript = url === "/page.js";
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? script : PAGE);
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    return new Site(server, `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`);
  }

  /** Returns the URL of the page that connects to `socket`. `bearer`: the page presents its name and a new number at each attempt. */
  page(socket: string, options: object = {}, bearer = ""): string {
    return `${this.origin}/?${new URLSearchParams({ socket, options: JSON.stringify(options), bearer })}`;
  }

  /** Returns the URL of a page of the same origin that opens no connection. */
  get elsewhere(): string {
    return `${this.origin}/elsewhere`;
  }

  close(): void {
    this.server.close();
    this.server.closeAllConnections();
  }
}
