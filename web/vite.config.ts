import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

/** Where the gateway's HTTP edge listens while the page is served by `npm run dev`. */
const GATEWAY = process.env.WORKBENCH_GATEWAY ?? "http://127.0.0.1:7180";

export default defineConfig({
  plugins: [svelte()],
  base: "/",
  build: {
    outDir: "../services/gateway/web_dist",
    emptyOutDir: true,
    target: "es2022",
    // The page's policy allows images and scripts from the same origin only, so nothing is inlined.
    assetsInlineLimit: 0,
    // The concept map brings ECharts; it loads with its view alone.
    chunkSizeWarningLimit: 700,
  },
  server: { proxy: { "/v1": GATEWAY, "/openapi.json": GATEWAY } },
  test: { include: ["tests/**/*.test.ts"], environment: "node" },
});
