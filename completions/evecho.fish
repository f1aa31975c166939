# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_evecho_global_optspecs
    string join \n check-config p/port= bind= tcp-only udp-only backlog= reuse-port metrics= service= name= framing= max-frame= once max-connections= spare-files= per-source-connections= idle-timeout= drain-delay= drain-timeout= max-buffered= udp-rate= guard-ports= loss= delay= jitter= duplicate= reorder= corrupt= seed= design= busy-poll= no-udp-offload log-format= v/verbose q/quiet h/help V/version
end

function __fish_evecho_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_evecho_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_evecho_using_subcommand
    set -l cmd (__fish_evecho_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c evecho -n "__fish_evecho_needs_command" -s p -l port -d 'TCP and UDP port; 0 picks a free one and prints it' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l bind -d 'Bind this address; may be given several times [default: every interface, IPv4 and IPv6]' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l backlog -d 'Connections that may wait to be accepted, as far as the system allows' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l metrics -d 'Serve monitors here over HTTP: /metrics (Prometheus), /livez and /readyz [default: off]' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l service -d 'What to reply' -r -f -a "echo\t'The same bytes (RFC 862)'
upper\t'Text in Unicode upper case; bytes that are not UTF-8 unchanged'
who\t'The addresses of client and server, and the name of the server: a line of JSON'"
complete -c evecho -n "__fish_evecho_needs_command" -l name -d 'Name of this server in the replies of --service who: 1 to 64 letters, digits, \'.\', \'_\' and \'-\'' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l framing -d 'How the end of a message is marked in a TCP stream; each datagram is a message' -r -f -a "raw\t'No messages: bytes as they come'
lines\t'Lines: each ends with a line feed'
length\t'Frames: a length in four bytes, big-endian, then the payload'"
complete -c evecho -n "__fish_evecho_needs_command" -l max-frame -d 'Longest frame that is served: a longer one ends the connection' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l max-connections -d 'Most TCP connections at a time; others wait in the backlog [default: what the limit on open files allows]' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l spare-files -d 'Leave this many descriptors free for other purposes' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l per-source-connections -d 'Most TCP connections at a time from one IPv4 address or IPv6 /64; others are closed [default: no limit]' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l idle-timeout -d 'Close a connection when no bytes have moved for this time; 0 never does' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l drain-delay -d 'Keep serving for this time after SIGTERM or SIGINT, before the drain; a second signal ends at once' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l drain-timeout -d 'Longest time of the drain, up to the exit; a second signal ends at once' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l max-buffered -d 'Most memory that all TCP connections of the event loop hold together; near this limit, reads get smaller' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l udp-rate -d 'Most UDP replies per second to one remote IPv4 address or IPv6 /64; 0 is no limit' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l guard-ports -d 'Ignore datagrams from these source ports, besides our own; or \'none\'' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l loss -d 'Drop this share of replies, such as 30%; UDP only' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l delay -d 'Delay each reply by this time; UDP, and TCP with the event loop' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l jitter -d 'Make the delay up to this much shorter or longer' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l duplicate -d 'Send this share of replies twice; UDP only' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l reorder -d 'Send this share of replies without the delay, so that they overtake others; UDP only' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l corrupt -d 'Flip one bit in this share of replies; UDP only' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l seed -d 'Seed of the random generator: the same seed does the same to the same replies [default: random, and logged]' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l design -d 'Design of the server' -r -f -a "event-loop\t'One thread, one poll loop, nothing blocks'
threaded\t'A thread for each connection, and one for UDP'
iterative\t'One client at a time while the others wait, and a thread for UDP'"
complete -c evecho -n "__fish_evecho_needs_command" -l busy-poll -d 'Poll for up to this time before sleeping, as long as this finds new messages; 0 switches it off' -r -f
complete -c evecho -n "__fish_evecho_needs_command" -l log-format -d 'Format of the log' -r -f -a "auto\t'As text; under journald without times, which it adds, and with levels as it reads them'
text\t'For people'
json\t'For programs: one JSON object per line'"
complete -c evecho -n "__fish_evecho_needs_command" -l check-config -d 'Print what would be served, with which limits and for which clients, or what is wrong, and exit'
complete -c evecho -n "__fish_evecho_needs_command" -l tcp-only -d 'Serve TCP only'
complete -c evecho -n "__fish_evecho_needs_command" -l udp-only -d 'Serve UDP only'
complete -c evecho -n "__fish_evecho_needs_command" -l reuse-port -d 'Let several processes share the port (SO_REUSEPORT)'
complete -c evecho -n "__fish_evecho_needs_command" -l once -d 'Reply to the first message of a connection, then close it'
complete -c evecho -n "__fish_evecho_needs_command" -l no-udp-offload -d 'Receive and send each datagram alone, without segmentation offload'
complete -c evecho -n "__fish_evecho_needs_command" -s v -l verbose -d 'Log more: -v how each connection ended, -vv each step'
complete -c evecho -n "__fish_evecho_needs_command" -s q -l quiet -d 'Log errors only, whatever -v says'
complete -c evecho -n "__fish_evecho_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_needs_command" -s V -l version -d 'Print version'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "check" -d 'Grade any echo server by the rules that it must follow'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "compare" -d 'Compare echo servers under the same load: the three designs of evecho, and any others'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "completions" -d 'Print what a shell needs to complete the command line'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "load" -d 'Load an echo server, verify every byte that comes back, and measure'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "merge" -d 'Add up reports of \'evecho load --json\', for example from many machines'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "ping" -d 'Measure round-trip times, and find loss, duplicates, reordering and corruption'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "send" -d 'Send messages, or standard input, and print what comes back'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "states" -d 'Show how both ends of a TCP connection change state, step by step'
complete -c evecho -n "__fish_evecho_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l pid -d 'Also look at this process, which is the server, on this machine' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand check" -l start -d 'Start the server to grade, on loopback; {port} in the command stands for its port' -r -f -a "(__fish_complete_command)"
complete -c evecho -n "__fish_evecho_using_subcommand check" -l only -d 'Run only these cases, by name or by the start of a name, like tcp or \'udp-re*\'' -r -f -a "tcp-sizes\t''
tcp-bytes\t''
tcp-split\t''
tcp-half-close\t''
tcp-half-close-empty\t''
tcp-late-reader\t''
tcp-idle-peer\t''
tcp-never-reader\t''
tcp-reset\t''
tcp-churn\t''
tcp-many\t''
tcp-fair\t''
tcp-both-families\t''
udp-sizes\t''
udp-large\t''
udp-empty\t''
udp-bytes\t''
udp-reply-port\t''
udp-reply-address\t''
udp-burst\t''
udp-beside-tcp\t''
udp-both-families\t''
udp-gone-peers\t''
process-memory\t''
process-idle-cpu\t''
process-blocked-cpu\t''
process-threads\t''
process-descriptors\t''
process-reset\t''
process-exhaustion\t''
process-sigterm\t''
loop-self\t''
loop-port-zero\t''
loop-echo-port\t''
loop-broadcast\t''
upper-text\t''
upper-split\t''
upper-invalid\t''
upper-end\t''
upper-udp\t''"
complete -c evecho -n "__fish_evecho_using_subcommand check" -l skip -d 'Leave out these cases' -r -f -a "tcp-sizes\t''
tcp-bytes\t''
tcp-split\t''
tcp-half-close\t''
tcp-half-close-empty\t''
tcp-late-reader\t''
tcp-idle-peer\t''
tcp-never-reader\t''
tcp-reset\t''
tcp-churn\t''
tcp-many\t''
tcp-fair\t''
tcp-both-families\t''
udp-sizes\t''
udp-large\t''
udp-empty\t''
udp-bytes\t''
udp-reply-port\t''
udp-reply-address\t''
udp-burst\t''
udp-beside-tcp\t''
udp-both-families\t''
udp-gone-peers\t''
process-memory\t''
process-idle-cpu\t''
process-blocked-cpu\t''
process-threads\t''
process-descriptors\t''
process-reset\t''
process-exhaustion\t''
process-sigterm\t''
loop-self\t''
loop-port-zero\t''
loop-echo-port\t''
loop-broadcast\t''
upper-text\t''
upper-split\t''
upper-invalid\t''
upper-end\t''
upper-udp\t''"
complete -c evecho -n "__fish_evecho_using_subcommand check" -l timeout -d 'Most time that one case may wait' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand check" -l format -d 'How to print the result' -r -f -a "text\t'For people, grouped'
tap\t'Test Anything Protocol, version 13, as prove(1) reads it'
json\t'One JSON document'"
complete -c evecho -n "__fish_evecho_using_subcommand check" -s 4 -l ipv4 -d 'Use IPv4 only'
complete -c evecho -n "__fish_evecho_using_subcommand check" -s 6 -l ipv6 -d 'Use IPv6 only'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l upper -d 'Grade the upper-case service'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l once -d 'The server ends each TCP connection after the first message: skip what needs more'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l tcp-only -d 'Grade TCP only'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l udp-only -d 'Grade UDP only'
complete -c evecho -n "__fish_evecho_using_subcommand check" -l list -d 'List the cases with their rules and sources, and run none'
complete -c evecho -n "__fish_evecho_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand compare" -l design -d 'Designs of evecho to compare; without a value, none' -r -f -a "event-loop\t'One thread, one poll loop, nothing blocks'
threaded\t'A thread for each connection, and one for UDP'
iterative\t'One client at a time while the others wait, and a thread for UDP'"
complete -c evecho -n "__fish_evecho_using_subcommand compare" -l peer -d 'Another echo server to compare, like socat=\'socat TCP-LISTEN:{port},fork PIPE\'; may be given several times' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s c -l connections -d 'How many lasting connections: one measurement for each number' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s s -l size -d 'Bytes in each message' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s d -l depth -d 'Messages in flight on each lasting connection' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s r -l rounds -d 'How many rounds; in each of them the servers take turns' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s t -l time -d 'Measure each server for this time in each round' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -l timeout -d 'How long a reply, or the start of a server, may take' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s o -l output -d 'Write compare.svg, compare.csv and compare.json into this directory, and waits.svg: which of six clients waits for which, where one is slow' -r -f -a "(__fish_complete_directories (commandline -ct | string replace -r '^-[^=]*=' ''))"
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s u -l udp -d 'Compare over UDP, with a socket for each connection, and leave out the other measurements'
complete -c evecho -n "__fish_evecho_using_subcommand compare" -l upper -d 'Compare servers that answer in upper case: those of evecho with --service upper'
complete -c evecho -n "__fish_evecho_using_subcommand compare" -l no-scenes -d 'Leave out the other measurements: with a slow client, idle clients, short connections'
complete -c evecho -n "__fish_evecho_using_subcommand compare" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand load" -s m -l mode -d 'How the connections are used' -r -f -a "ping-pong\t'Send the next message when one comes back'
stream\t'Send and receive as fast as possible'
churn\t'Connect, exchange one message, half-close, wait for the server\'s FIN, close, again'
idle\t'Echo one message on each connection, be silent for --time, echo one more'"
complete -c evecho -n "__fish_evecho_using_subcommand load" -s c -l connections -d 'How many connections (with --udp, sockets) at the same time' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -s s -l size -d 'Bytes in each message; in stream mode, in each write [default: 64, in stream mode 64k]' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -s f -l framing -d 'How the end of a message is marked in a TCP stream [default: raw]' -r -f -a "raw\t'No messages: bytes as they come'
lines\t'Lines: each ends with a line feed'
length\t'Frames: a length in four bytes, big-endian, then the payload'"
complete -c evecho -n "__fish_evecho_using_subcommand load" -l pattern -d 'What the messages are made of' -r -f -a "text\t'Lower-case letters and digits'
binary\t'All byte values'"
complete -c evecho -n "__fish_evecho_using_subcommand load" -s d -l depth -d 'Messages in flight on each connection without --rate: the depth, not the duration, which is --time' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -s t -l time -d 'Measure for this time [default: 10s; with --sweep, 2s for each rate]' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -s n -l messages -d 'Measure this many messages, instead of a time' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l warmup -d 'Load for this time before measuring [default: 0; with --sweep, a quarter of --time]' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -s r -l rate -d 'Send this many messages a second over all connections, each when it is due, whatever is still out; each latency then starts when the message was due' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l timeout -d 'How long a connection or a reply may take [default: 5s, with --udp 500ms]' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l from -d 'Source addresses to use in turn [default: in churn and over 10,000 connections, those of the interface; on loopback, 64]' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l threads -d 'Threads that share the connections, or auto for one for each CPU' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l pid -d 'Report what this process and its descendants use: the server\'s, on this machine' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l every -d 'Print a line for each interval of this length; with --json, a line of JSON' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand load" -l figure -d 'Draw the report into this file, as SVG: latency by percentile; rate, p50, p99 and errors over time; with --sweep, latency over the rate' -r -F
complete -c evecho -n "__fish_evecho_using_subcommand load" -s 4 -l ipv4 -d 'Use IPv4 only'
complete -c evecho -n "__fish_evecho_using_subcommand load" -s 6 -l ipv6 -d 'Use IPv6 only'
complete -c evecho -n "__fish_evecho_using_subcommand load" -s u -l udp -d 'Send datagrams; those that do not come back within --timeout are lost'
complete -c evecho -n "__fish_evecho_using_subcommand load" -l upper -d 'Expect the answers in upper case'
complete -c evecho -n "__fish_evecho_using_subcommand load" -l json -d 'Print the report as a line of JSON, with times in nanoseconds; evecho merge adds up several'
complete -c evecho -n "__fish_evecho_using_subcommand load" -l sweep -d 'Load at rate after rate, from 1000/s or --rate on, up to the knee of the server: the highest rate at which 99 % come back in the same time, and p99 is at most 10 times its median at lower rates. How long it takes at the longest is said first. The exit code is 0 when the knee is found, and nothing was wrong at rates that were kept'
complete -c evecho -n "__fish_evecho_using_subcommand load" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand merge" -l figure -d 'Draw the reports over each other into this file, as SVG, also such as cannot be added' -r -F
complete -c evecho -n "__fish_evecho_using_subcommand merge" -l json -d 'Print the sum as a line of JSON, which can be added again'
complete -c evecho -n "__fish_evecho_using_subcommand merge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s f -l framing -d 'How the end of a ping is marked in a TCP stream [default: raw]' -r -f -a "raw\t'No messages: bytes as they come'
lines\t'Lines: each ends with a line feed'
length\t'Frames: a length in four bytes, big-endian, then the payload'"
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s c -l count -d 'Send this many pings; with --deadline, until this many are answered' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s w -l deadline -d 'End after this time, whatever was sent and answered' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s i -l interval -d 'Time from one ping to the next; 0 sends each as soon as the one before is answered' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s s -l size -d 'Bytes in each ping, 24 to 65507' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l pattern -d 'What the pings are made of' -r -f -a "text\t'Lower-case letters and digits'
binary\t'All byte values'"
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s W -l wait -d 'Give up on a ping, or on connecting, after this time' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l from -l source -d 'Send from this address of this machine' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l dscp -d 'Mark what is sent with this code point: 0 to 63, or a name like ef, cs6, af41' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l figure -d 'Draw round-trip times over time, with losses, into this file, as SVG' -r -F
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s 4 -l ipv4 -d 'Use IPv4 only'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s 6 -l ipv6 -d 'Use IPv6 only'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s u -l udp -d 'Send each ping as a datagram'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l upper -d 'Expect the replies in upper case'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s O -l outstanding -d 'Before each ping, say when the one before has no reply yet'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s D -l timestamps -d 'Print the time before each line, in seconds since 1970'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s q -l quiet -d 'Print only the summary'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -l json -d 'Print each event, and the summary, as a line of JSON, with times in nanoseconds'
complete -c evecho -n "__fish_evecho_using_subcommand ping" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand send" -s f -l framing -d 'How the end of a message is marked in a TCP stream [default: lines]' -r -f -a "raw\t'No messages: bytes as they come'
lines\t'Lines: each ends with a line feed'
length\t'Frames: a length in four bytes, big-endian, then the payload'"
complete -c evecho -n "__fish_evecho_using_subcommand send" -s t -l timeout -d 'Give up when connecting takes this long, or the server then does nothing for this long' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand send" -s 4 -l ipv4 -d 'Use IPv4 only'
complete -c evecho -n "__fish_evecho_using_subcommand send" -s 6 -l ipv6 -d 'Use IPv6 only'
complete -c evecho -n "__fish_evecho_using_subcommand send" -s u -l udp -d 'Send each message as a datagram, from a port of its own'
complete -c evecho -n "__fish_evecho_using_subcommand send" -s r -l raw -d 'Send all of standard input as it is: over TCP as a stream, half-closed at its end, over UDP as one datagram'
complete -c evecho -n "__fish_evecho_using_subcommand send" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand states" -l start -d 'Start this server for each scenario, on loopback; {port} in the command stands for its port' -r -f -a "(__fish_complete_command)"
complete -c evecho -n "__fish_evecho_using_subcommand states" -l design -d 'Design of the server of its own [default: the one that a scenario is about, or event-loop]' -r -f -a "event-loop\t'One thread, one poll loop, nothing blocks'
threaded\t'A thread for each connection, and one for UDP'
iterative\t'One client at a time while the others wait, and a thread for UDP'"
complete -c evecho -n "__fish_evecho_using_subcommand states" -l framing -d 'How the end of a message is marked in the scenario echo; the server has to do the same' -r -f -a "raw\t'No messages: bytes as they come'
lines\t'Lines: each ends with a line feed'
length\t'Frames: a length in four bytes, big-endian, then the payload'"
complete -c evecho -n "__fish_evecho_using_subcommand states" -l timeout -d 'Most time that a state may take to come' -r -f
complete -c evecho -n "__fish_evecho_using_subcommand states" -l segments -d 'Show the segments as they are on the wire, with their numbers; this takes CAP_NET_RAW, or a network of its own, which it makes where it starts the server' -r -f -a "auto\t'Where that is possible'
always\t'Always, or it ends'
never\t'Never: those are shown that make such a change of states'"
complete -c evecho -n "__fish_evecho_using_subcommand states" -l figure -d 'Draw what was shown as ladders, time going down: SVG' -r -F
complete -c evecho -n "__fish_evecho_using_subcommand states" -s 4 -l ipv4 -d 'Use IPv4 only'
complete -c evecho -n "__fish_evecho_using_subcommand states" -s 6 -l ipv6 -d 'Use IPv6 only'
complete -c evecho -n "__fish_evecho_using_subcommand states" -l absolute -d 'Show sequence numbers as they are on the wire, and not since the SYN'
complete -c evecho -n "__fish_evecho_using_subcommand states" -l step -d 'Wait for Enter after each step'
complete -c evecho -n "__fish_evecho_using_subcommand states" -l json -d 'Print one JSON document'
complete -c evecho -n "__fish_evecho_using_subcommand states" -l list -d 'List the scenarios, and show none'
complete -c evecho -n "__fish_evecho_using_subcommand states" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "check" -d 'Grade any echo server by the rules that it must follow'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "compare" -d 'Compare echo servers under the same load: the three designs of evecho, and any others'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "completions" -d 'Print what a shell needs to complete the command line'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "load" -d 'Load an echo server, verify every byte that comes back, and measure'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "merge" -d 'Add up reports of \'evecho load --json\', for example from many machines'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "ping" -d 'Measure round-trip times, and find loss, duplicates, reordering and corruption'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "send" -d 'Send messages, or standard input, and print what comes back'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "states" -d 'Show how both ends of a TCP connection change state, step by step'
complete -c evecho -n "__fish_evecho_using_subcommand help; and not __fish_seen_subcommand_from check compare completions load merge ping send states" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evecho -n "__fish_evecho_using_subcommand check" -f -a '(__fish_print_hostnames)'
complete -c evecho -n "__fish_evecho_using_subcommand completions" -f -a 'bash elvish fish powershell zsh'
complete -c evecho -n "__fish_evecho_using_subcommand load" -f -a '(__fish_print_hostnames)'
complete -c evecho -n "__fish_evecho_using_subcommand merge" -F
complete -c evecho -n "__fish_evecho_using_subcommand ping" -f -a '(__fish_print_hostnames)'
complete -c evecho -n "__fish_evecho_using_subcommand send" -f -a '(__fish_print_hostnames)'
complete -c evecho -n "__fish_evecho_using_subcommand states" -f -a 'handshake close open echo half-close server-closes time-wait backlog blocked window retransmit probe nagle closing udp reset'
