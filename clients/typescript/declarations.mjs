/** What a file of this package's says as CommonJS: its neighbours are the `.cjs` and `.d.cts` ones, and no map is its own. */
export const asCommon = (text) => text.replace(/(["'])(\.\.?\/[\w./-]+)\.js\1/g, "$1$2.cjs$1").replace(/^\/\/# sourceMappingURL=.*$/gm, "");
