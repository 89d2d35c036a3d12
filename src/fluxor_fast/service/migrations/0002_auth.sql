-- Nothing here refers to users by a foreign key: each use joins users, so what belongs to a user
-- who is gone is good for nothing, and it is swept when its time is over.

create table sessions (
    id text primary key,
    user_id bigint not null,
    -- SHA-256 of the one refresh token that is good
    refresh_digest bytea not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz
);
create index sessions_expires_at on sessions (expires_at);
-- what each worker asks for every second
create index sessions_revoked_at on sessions (revoked_at) where revoked_at is not null;

create table api_keys (
    id bigint generated always as identity primary key,
    user_id bigint not null,
    prefix text not null unique,
    -- SHA-256 of the whole key
    digest bytea not null,
    name text not null,
    tier text not null,
    roles text[] not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
create index api_keys_user_id on api_keys (user_id);

-- unlogged: it is written with every login, and after a crash of the server it may begin anew
create unlogged table login_attempts (
    key bytea primary key,
    count int not null,
    until timestamptz not null
);
create index login_attempts_until on login_attempts (until);
