// Test my reconnect, with Playwright: a page in a real browser, behind a proxy that breaks its connections.
import { chaos } from "@mainstay/chaos";
import { expect, test } from "@playwright/test";
import { serve } from "./server.mjs";

let server, proxy;
test.beforeEach(async () => {
  server = await serve();
  proxy = await chaos({ upstream: server.address, seed: 7 });
});
test.afterEach(async () => {
  await proxy.close();
  await server.close();
});

async function open(page, client) {
  await page.goto(`/?client=${client}&server=${encodeURIComponent(proxy.url("/echo"))}`);
  await expect(page.locator("#status")).toHaveText("connected");
}
async function send(page, text) {
  await page.getByLabel("Message").fill(text);
  await page.getByRole("button", { name: "Send" }).click();
}
const log = (page) => page.locator("#log li");

for (const client of ["reconnecting-websocket", "@mainstay/client"]) {
  test(`${client}: what is typed while the network is away arrives once`, async ({ page }) => {
    await open(page, client);
    await send(page, "before");
    await expect(log(page)).toHaveText(["before"]);
    await proxy.inject({ kind: "refuse" });
    await proxy.reset();
    await expect(page.locator("#status")).toHaveText("reconnecting");
    await send(page, "meanwhile");
    await proxy.liftAll();
    await expect(log(page)).toHaveText(["before", "meanwhile"]);
    await send(page, "after");
    await expect(log(page)).toHaveText(["before", "meanwhile", "after"]);
  });
}

test("@mainstay/client: what is sent into a half-open connection arrives once", async ({ page }) => {
  await open(page, "@mainstay/client");
  await proxy.inject({ kind: "black-hole", target: "open" });
  await send(page, "into the void");
  await expect(log(page)).toHaveText(["into the void"]);
  expect((await proxy.timeline()).filter(({ event }) => event === "handshake").length).toBeGreaterThan(1);
});
