-- "if not exists": databases from before there were numbered files have these already.
create table if not exists users (
    id bigint generated always as identity primary key,
    email text not null,
    name text,
    password_hash text,
    roles text[] not null default '{user}',
    created_at timestamptz not null default now()
);

-- without regard to case, as mail hosts treat addresses
create unique index if not exists users_email_key on users (lower(email));
