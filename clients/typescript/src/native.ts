/** The socket for React Native, which lacks EventTarget, Event, crypto and a whole URL: `@mainstay/client` there is this. */

import { MainstaySocket as Base, type Options } from "./index.js";
import type { Fresh } from "./options.js";

export * from "./index.js";

/** As everywhere, but binary messages arrive as `arraybuffer` unless `binaryType` is set: a Blob cannot be made of bytes there. */
export class MainstaySocket extends Base {
  /** As written, whatever minifiers make of it. */
  static override readonly name: string = "MainstaySocket";

  constructor(url: Fresh<string | URL>, protocols: Fresh<string | string[]> = [], options: Options = {}) {
    super(url, protocols, options);
    this.binaryType = "arraybuffer";
  }
}
