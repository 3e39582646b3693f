// What stands between client and server: nothing, nginx, or Mainstay, with and without the row's profile.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { Program, freePort } from './processes.mjs';

export const LEGS = ['direct', 'nginx', 'mainstay', 'profile'];

/** Starts what `leg` names in front of `backend`; resolves with the port that clients connect to. */
export async function front(leg, backend, row, folder) {
  if (leg === 'direct') return { port: backend };
  const port = await freePort();
  const program = leg === 'nginx' ? nginx(port, backend, folder) : mainstay(leg, port, backend, row, folder);
  await program.listens(port);
  return { port, program };
}

/** As nginx's own documentation describes for WebSocket, with the client's Host. */
function nginx(port, backend, folder) {
  const home = join(folder, 'nginx');
  mkdirSync(home, { recursive: true });
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
  writeFileSync(join(home, 'nginx.conf'), `
daemon off; master_process off; pid ${home}/pid; error_log stderr warn;
events {}
http {
  access_log off;
  ${temporary.map((name) => `${name}_temp_path ${home}/${name};`).join(' ')}
  map $http_upgrade $connection_upgrade { default upgrade; '' close; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://127.0.0.1:${backend};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $http_host;
    }
  }
}
`);
  const args = ['-p', home, '-e', 'stderr', '-c', join(home, 'nginx.conf')];
  return new Program({ command: process.env.NGINX ?? 'nginx', args, log: join(folder, 'front.log') });
}

function mainstay(leg, port, backend, row, folder) {
  const profile = leg === 'profile' ? ['--profile', row.profile] : [];
  const args = ['serve', '--listen', `127.0.0.1:${port}`, '--upstream', `ws://127.0.0.1:${backend}`, ...profile];
  const command = process.env.MAINSTAY ?? 'target/release/mainstay';
  return new Program({ command, args, env: { MAINSTAY_LOG: 'info' }, log: join(folder, 'front.log') });
}
