/** Where each language's page belongs. */
export const TARGETS: { en: string; zh: string };
/** The page, as it is to be in this language. */
export function page(language: string): Promise<string>;
/** Where the console belongs. */
export const CONSOLE: string;
/** The console, as it is to be. */
export function operators(): Promise<string>;
