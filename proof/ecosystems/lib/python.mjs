// Programs in Python, in the environment that the proof has installed.

/** How to start Python with these arguments; it finds the modules of servers/. */
export function python(...args) {
  const env = { PYTHONDONTWRITEBYTECODE: '1', PYTHONUNBUFFERED: '1', PYTHONPATH: 'servers' };
  return { command: process.env.PYTHON ?? 'python3', args: args.map(String), env };
}
