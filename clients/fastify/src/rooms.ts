/** Rooms: names that group sessions. A session joins and leaves rooms; a session that ends leaves all of them. */

/** The rooms of one server, and their members. */
export class Rooms<Session extends { readonly state: string }> {
  private rooms = new Map<string, Set<Session>>();
  private members = new Map<Session, Set<string>>();

  /** Adds a session to a room, unless the session has ended. */
  join(session: Session, name: string): void {
    check(name);
    // A session that ended has left its rooms, and nothing would remove it again.
    if (session.state === "closed") return;
    const room = this.rooms.get(name) ?? new Set();
    this.rooms.set(name, room.add(session));
    const joined = this.members.get(session) ?? new Set();
    this.members.set(session, joined.add(name));
  }

  /** Removes a session from a room. */
  leave(session: Session, name: string): void {
    const room = this.rooms.get(name);
    if (!room?.delete(session)) return;
    if (!room.size) this.rooms.delete(name);
    const joined = this.members.get(session)!;
    joined.delete(name);
    if (!joined.size) this.members.delete(session);
  }

  /** Removes a session from all of its rooms. */
  leaveAll(session: Session): void {
    for (const name of [...(this.members.get(session) ?? [])]) this.leave(session, name);
  }

  /** Returns the rooms of a session. */
  of(session: Session): ReadonlySet<string> {
    return new Set(this.members.get(session));
  }

  /** The names of the rooms that have members. */
  get names(): string[] {
    return [...this.rooms.keys()];
  }

  /** Returns the sessions in these rooms, each once. */
  in(names: string[]): ReadonlySet<Session> {
    names.forEach(check);
    const sets = names.map((name) => this.rooms.get(name) ?? []);
    return new Set(sets.flatMap((set) => [...set]));
  }
}

function check(name: unknown): void {
  if (typeof name !== "string" || name === "") throw new TypeError("a room's name is a string that is not empty");
}
