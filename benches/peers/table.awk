# The table of docs/measure.md, of files that `evecho compare --output` has written, each after title=TITLE. A cell has
# two ratios to the C loop, of messages per second and of CPU per message: the medians of the ratios in each round.

BEGIN { FS = "," }
{ sub(/\r$/, "") }

FNR == 1 { # The names of the columns.
    for (i = 1; i <= NF; i++) column[$i] = i
    next
}

{
    row = title ": " what($column["trial"], $column["connections"])
    server = $column["server"]
    if (!(row in seen_row)) { seen_row[row]; rows[++row_count] = row }
    if (!(server in seen_server)) { seen_server[server]; if (server != "c_loop" && server != "evecho") others[++other_count] = server }
    if ($column["messages_per_second"] == "") {
        # The last column, in quotes where it has a comma.
        text = $column["fault"]
        for (i = column["fault"] + 1; i <= NF; i++) text = text "," $i
        gsub(/^"|"$/, "", text)
        fault[row, server] = text
        next
    }
    round = ++rounds[row, server]
    rate[row, server, round] = $column["messages_per_second"]
    cpu[row, server, round] = $column["cpu_us_per_message"]
    p50[row, server, round] = $column["p50_us"]
}

END {
    printf "| | C loop: messages/s; median | evecho"
    for (s = 1; s <= other_count; s++) printf " | %s", others[s]
    printf " |\n|---|---|---"
    for (s = 1; s <= other_count; s++) printf "|---"
    print "|"
    for (r = 1; r <= row_count; r++) {
        row = rows[r]
        printf "| %s | %s | %s", row, base(row), ratios(row, "evecho")
        for (s = 1; s <= other_count; s++) printf " | %s", ratios(row, others[s])
        print " |"
    }
    for (key in fault) {
        split(key, part, SUBSEP)
        printf "%s, %s: %s\n", part[2], part[1], fault[key] > "/dev/stderr"
        failed = 1
    }
    exit failed
}

function what(trial, connections) {
    if (trial == "slow") return "one slow client before " connections " others"
    if (trial == "idle") return "one client among " connections " idle ones"
    if (trial == "short") return connections " clients, each message a connection"
    return connections (title ~ /^UDP/ ? " socket" : " connection") (connections == 1 ? "" : "s")
}

# What the ratios refer to.
function base(row, i) {
    if ((row, "c_loop") in fault || !rounds[row, "c_loop"]) return "fails"
    for (i = 1; i <= rounds[row, "c_loop"]; i++) values[i] = rate[row, "c_loop", i]
    sort(i - 1)
    text = grouped(int(median(i - 1)))
    for (i = 1; i <= rounds[row, "c_loop"]; i++) values[i] = p50[row, "c_loop", i]
    sort(i - 1)
    return text "; " time(median(i - 1))
}

function ratios(row, server, i, n) {
    n = rounds[row, server]
    if ((row, server) in fault || !n) return "fails"
    if (rounds[row, "c_loop"] < n) return "-"
    for (i = 1; i <= n; i++) values[i] = rate[row, server, i] / rate[row, "c_loop", i]
    sort(n)
    text = sprintf("%.2f ± %.0f %%", median(n), (values[n] - values[1]) / median(n) * 50)
    for (i = 1; i <= n; i++) values[i] = cpu[row, server, i] / cpu[row, "c_loop", i]
    sort(n)
    return sprintf("%s; %.2f", text, median(n))
}

function grouped(number) {
    return number < 1000 ? number : grouped(int(number / 1000)) sprintf(",%03d", number % 1000)
}

function time(us) {
    return us < 1000 ? sprintf("%.3g µs", us) : sprintf("%.3g ms", us / 1000)
}

# Sorts values[1] to values[n].
function sort(n, i, j, value) {
    for (i = 2; i <= n; i++) {
        value = values[i]
        for (j = i; j > 1 && values[j - 1] > value; j--) values[j] = values[j - 1]
        values[j] = value
    }
}

function median(n) {
    return (values[int((n + 1) / 2)] + values[int(n / 2) + 1]) / 2
}
