// Only in this repository: the package is a link to a folder that has a React of its own.
export default { resolve: { dedupe: ["react"] } };
