/** The page, as it is to be. */
export function page(): Promise<string>;
/** Where it belongs. */
export const TARGET: string;
