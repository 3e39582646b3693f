import { defineConfig } from "@playwright/test";

export default defineConfig({
  testMatch: "chaos/*.spec.mjs",
  fullyParallel: true,
  outputDir: "../target/xtask/playwright",
  expect: { timeout: 20_000 },
  timeout: 60_000,
  // The browser of the system; without this line, the one of `npx playwright install`.
  use: { baseURL: "http://127.0.0.1:8092", launchOptions: { executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium" } },
  webServer: { command: "vite build chaos && vite preview chaos --port 8092 --strictPort", url: "http://127.0.0.1:8092" },
});
