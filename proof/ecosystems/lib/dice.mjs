// Loaded before everything else: the random part of clients' backoffs becomes the same on each leg, so that waits can
// be compared. Values differ a little, because some clients make identifiers of them.

let calls = 0;
Math.random = () => 0.5 + (((calls += 1) * 0.618033988749) % 1) / 1000;
