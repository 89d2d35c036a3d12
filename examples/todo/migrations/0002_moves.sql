create table moves (
    id bigint generated always as identity primary key,
    from_list bigint not null,
    to_list bigint not null,
    todos int not null,
    at timestamptz not null default now()
);
