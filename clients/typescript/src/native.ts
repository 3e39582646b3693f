/** The socket for React Native, which lacks EventTarget, Event, crypto and a whole URL: `@mainstay/client` there is this. */

import { MainstaySocket as Base, type Options } from "./index.js";
import type { Fresh } from "./options.js";

export * from "./index.js";

/** As in browsers, but binary messages arrive as `arraybuffer` unless `binaryType` is set: React Native cannot make a Blob of bytes. */
export class MainstaySocket extends Base {
  /** The name in source, which minifiers do not change. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    super(url, protocols, options);
    this.binaryType = "arraybuffer";
  }
}
