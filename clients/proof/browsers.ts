/**
 * Real browsers, configured as their users have them: background tabs are throttled and pages can be frozen. Drivers made for tests of
 * pages switch exactly that off.
 */

import { existsSync } from "node:fs";
import puppeteer, { type Browser, type Page } from "puppeteer-core";

/** The arguments by which puppeteer makes visible and hidden pages of Chromium behave alike. */
const SWITCHED_OFF = ["--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding"];

export interface Engine {
  name: "chromium" | "firefox";
  path: string;
  /** How to install it. */
  install: string;
}

export const CHROMIUM: Engine = {
  name: "chromium",
  path: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
  install: "apt-get install chromium, or name it in the environment variable CHROMIUM",
};
export const FIREFOX: Engine = {
  name: "firefox",
  path: process.env["FIREFOX"] ?? "/usr/bin/firefox-esr",
  install: "apt-get install firefox-esr, or name it in the environment variable FIREFOX",
};

export const isThere = ({ path }: Engine) => existsSync(path);

/** Chromium allows a page that was hidden for five minutes one timer a minute; with this, a page that was hidden for a second. */
export const ONE_TIMER_A_MINUTE = ["--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1"];

export function launch({ name, path, install }: Engine, more: string[] = []): Promise<Browser> {
  if (!existsSync(path)) throw new Error(`no browser at ${path}: ${install}`);
  if (name === "firefox") return puppeteer.launch({ browser: name, executablePath: path });
  // Its sandbox does not start for root.
  const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return puppeteer.launch({ executablePath: path, args: [...args, ...more], ignoreDefaultArgs: SWITCHED_OFF });
}

/** Brings another tab to the front until `during` is over. */
export async function hidden(page: Page, during: () => Promise<void>): Promise<void> {
  const cover = await page.browser().newPage();
  await cover.bringToFront();
  await page.waitForFunction(() => document.hidden, { polling: 50 });
  await during();
  await page.bringToFront();
  await page.waitForFunction(() => !document.hidden, { polling: 50 });
  await cover.close();
}

/** Freezes a hidden page, as Chromium does with tabs that were long in the background. */
export const freeze = (page: Page) => command(page, "Page.setWebLifecycleState", { state: "frozen" });

export const thaw = (page: Page) => command(page, "Page.setWebLifecycleState", { state: "active" });

/** Ends the page's process without an event, as Chromium does with frozen tabs when memory is short. */
export async function crash(page: Page): Promise<void> {
  const gone = new Promise((resolve) => page.once("error", resolve));
  // No process is left to answer.
  void command(page, "Page.crash").catch(() => {});
  await gone;
}

async function command(page: Page, method: "Page.crash" | "Page.setWebLifecycleState", parameters?: any): Promise<void> {
  const devtools = await page.createCDPSession();
  await devtools.send(method, parameters);
  await devtools.detach();
}
