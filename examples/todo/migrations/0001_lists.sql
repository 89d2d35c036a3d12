create table lists (
    id bigint generated always as identity primary key,
    name text not null unique
);

create table todos (
    id bigint generated always as identity primary key,
    list_id bigint not null references lists on delete cascade,
    title text not null,
    done boolean not null default false,
    created_at timestamptz not null default now()
);

create index todos_by_list on todos (list_id, id);
