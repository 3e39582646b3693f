/** One request to the program's HTTP API. */

import http from "node:http";

/** Every socket is closed after its answer: none keeps this process from ending. */
const agent = new http.Agent({ keepAlive: false });

/**
 * Sends a request and returns the answer's JSON. It does not use `fetch`, which test environments replace.
 *
 * The promise is rejected with the API's own words if the API refuses the request.
 */
export function request<T>(api: string, method: string, path: string, body?: unknown): Promise<T> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const headers = text === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
  return new Promise((resolve, reject) => {
    const sent = http.request(`http://${api}${path}`, { method, headers, agent }, (response) => {
      let answer = "";
      response.setEncoding("utf8").on("data", (part) => (answer += part));
      response.on("error", reject);
      response.on("end", () => {
        const status = response.statusCode ?? 0;
        const json = parse(answer);
        if (status < 400) resolve(json as T);
        else reject(new Error((json as { error?: string } | undefined)?.error ?? `${method} ${path}: ${status} ${answer}`.trim()));
      });
    });
    sent.on("error", reject);
    sent.end(text);
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined; // 204 has no body
  }
}
