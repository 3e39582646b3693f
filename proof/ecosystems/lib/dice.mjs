// Loaded before everything else: the random part of clients' backoffs becomes the same on each leg, so that waits can
// be compared. Values differ a little, as some make identifiers of them (who needs better ones gives them by an option).

let calls = 0;
Math.random = () => 0.5 + (((calls += 1) * 0.618033988749) % 1) / 1000;
