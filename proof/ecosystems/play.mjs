// One row on one leg: `node --import ./lib/dice.mjs play.mjs ROW LEG FOLDER RESTARTS`. Prints a line of JSON for each result.

import { Leg } from './lib/leg.mjs';
import { endAll } from './lib/processes.mjs';

const [name, legName, folder, times] = process.argv.slice(2);
process.chdir(import.meta.dirname);
console.log = console.info = console.debug = console.error; // results alone go to the standard output
// An uncaught exception of a client fails the check under way; the others continue.
process.on('uncaughtException', (error) => console.error(`uncaught: ${error.stack}`));
process.on('unhandledRejection', (error) => console.error(`unhandled: ${error?.stack ?? error}`));

try {
  const { default: row } = await import(`./rows/${name}.mjs`);
  const leg = await Leg.start({ ...row, name }, legName, folder);
  await row.play(leg, { times: Number(times) });
  leg.report({ done: true });
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
await endAll();
process.exit();
