/**
 * Opens a page in Chromium, waits until it shows a text, and prints all that it shows.
 *
 *     npm run look -- URL TEXT
 */

import { CHROMIUM, launch } from "./browsers.js";

const [url, text] = process.argv.slice(2);
if (!url || !text) throw new Error("usage: look URL TEXT");
const browser = await launch(CHROMIUM);
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForFunction((text) => document.body.innerText.includes(text), { timeout: 30_000 }, text);
  console.log(await page.evaluate(() => document.body.innerText));
} finally {
  await browser.close();
}
