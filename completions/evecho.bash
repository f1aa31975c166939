_evecho() {
    local cur=$2 prev=$3 command='' flags='' takes='' list='' prefix='' first=() more=() offer=() index word
    # In COMP_WORDS, '=' and ':' are words.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $prev == : || $cur == : ]]; then
        return
    fi
    if ((COMP_CWORD > 1)); then
        case ${COMP_WORDS[1]} in
            check | compare | completions | load | merge | ping | send | states | help) command=${COMP_WORDS[1]} ;;
        esac
    fi
    case $command in
        '')
            flags='--check-config -p --port --bind --tcp-only --udp-only --backlog --reuse-port --metrics --service --name --framing --max-frame --once --max-connections --spare-files --per-source-connections --idle-timeout --drain-delay --drain-timeout --max-buffered --udp-rate --guard-ports --loss --delay --jitter --duplicate --reorder --corrupt --seed --design --busy-poll --no-udp-offload --log-format -v --verbose -q --quiet -h --help -V --version'
            takes='-p --port --bind --backlog --metrics --service --name --framing --max-frame --max-connections --spare-files --per-source-connections --idle-timeout --drain-delay --drain-timeout --max-buffered --udp-rate --guard-ports --loss --delay --jitter --duplicate --reorder --corrupt --seed --design --busy-poll --log-format'
            first=(-W '--check-config -p --port --bind --tcp-only --udp-only --backlog --reuse-port --metrics --service --name --framing --max-frame --once --max-connections --spare-files --per-source-connections --idle-timeout --drain-delay --drain-timeout --max-buffered --udp-rate --guard-ports --loss --delay --jitter --duplicate --reorder --corrupt --seed --design --busy-poll --no-udp-offload --log-format -v --verbose -q --quiet -h --help -V --version check compare completions load merge ping send states help') more=(-W '--check-config -p --port --bind --tcp-only --udp-only --backlog --reuse-port --metrics --service --name --framing --max-frame --once --max-connections --spare-files --per-source-connections --idle-timeout --drain-delay --drain-timeout --max-buffered --udp-rate --guard-ports --loss --delay --jitter --duplicate --reorder --corrupt --seed --design --busy-poll --no-udp-offload --log-format -v --verbose -q --quiet -h --help -V --version') ;;
        'check')
            flags='-4 --ipv4 -6 --ipv6 --pid --start --upper --once --tcp-only --udp-only --only --skip --timeout --format --list -h --help'
            takes='--pid --start --only --skip --timeout --format'
            first=(-A hostname) more=() ;;
        'compare')
            flags='--design --peer -c --connections -u --udp -s --size --upper -d --depth -r --rounds -t --time --no-scenes --timeout -o --output -h --help'
            takes='--design --peer -c --connections -s --size -d --depth -r --rounds -t --time --timeout -o --output'
            first=(-W '--design --peer -c --connections -u --udp -s --size --upper -d --depth -r --rounds -t --time --no-scenes --timeout -o --output -h --help') more=() ;;
        'completions')
            flags='-h --help'
            takes=''
            first=(-W 'bash elvish fish powershell zsh') more=() ;;
        'load')
            flags='-4 --ipv4 -6 --ipv6 -u --udp -m --mode -c --connections -s --size -f --framing --pattern --upper -d --depth -t --time -n --messages --warmup -r --rate --timeout --from --threads --pid --every --json --sweep --figure -h --help'
            takes='-m --mode -c --connections -s --size -f --framing --pattern -d --depth -t --time -n --messages --warmup -r --rate --timeout --from --threads --pid --every --figure'
            first=(-A hostname) more=() ;;
        'merge')
            flags='--json --figure -h --help'
            takes='--figure'
            first=(-f) more=(-f) ;;
        'ping')
            flags='-4 --ipv4 -6 --ipv6 -u --udp -f --framing -c --count -w --deadline -i --interval -s --size --pattern --upper -W --wait -O --outstanding -D --timestamps -q --quiet --from --dscp --figure --json -h --help'
            takes='-f --framing -c --count -w --deadline -i --interval -s --size --pattern -W --wait --from --dscp --figure'
            first=(-A hostname) more=() ;;
        'send')
            flags='-4 --ipv4 -6 --ipv6 -u --udp -f --framing -r --raw -t --timeout -h --help'
            takes='-f --framing -t --timeout'
            first=(-A hostname) more=() ;;
        'states')
            flags='-4 --ipv4 -6 --ipv6 --start --design --framing --timeout --segments --absolute --figure --step --json --list -h --help'
            takes='--start --design --framing --timeout --segments --figure'
            first=(-W 'handshake close open echo half-close server-closes time-wait backlog blocked window retransmit probe nagle closing udp reset') more=(-W 'handshake close open echo half-close server-closes time-wait backlog blocked window retransmit probe nagle closing udp reset') ;;
        'help')
            flags=''
            takes=''
            first=(-W 'check compare completions load merge ping send states help') more=() ;;
    esac
    case "$command $prev" in
        ' --service') offer=(-W 'echo upper who') ;;
        ' --framing') offer=(-W 'raw lines length') ;;
        ' --design') offer=(-W 'event-loop threaded iterative') ;;
        ' --log-format') offer=(-W 'auto text json') ;;
        'check --start') offer=(-c) ;;
        'check --only') offer=(-W 'tcp-sizes tcp-bytes tcp-split tcp-half-close tcp-half-close-empty tcp-late-reader tcp-idle-peer tcp-never-reader tcp-reset tcp-churn tcp-many tcp-fair tcp-both-families udp-sizes udp-large udp-empty udp-bytes udp-reply-port udp-reply-address udp-burst udp-beside-tcp udp-both-families udp-gone-peers process-memory process-idle-cpu process-blocked-cpu process-threads process-descriptors process-reset process-exhaustion process-sigterm loop-self loop-port-zero loop-echo-port loop-broadcast upper-text upper-split upper-invalid upper-end upper-udp') list=1 ;;
        'check --skip') offer=(-W 'tcp-sizes tcp-bytes tcp-split tcp-half-close tcp-half-close-empty tcp-late-reader tcp-idle-peer tcp-never-reader tcp-reset tcp-churn tcp-many tcp-fair tcp-both-families udp-sizes udp-large udp-empty udp-bytes udp-reply-port udp-reply-address udp-burst udp-beside-tcp udp-both-families udp-gone-peers process-memory process-idle-cpu process-blocked-cpu process-threads process-descriptors process-reset process-exhaustion process-sigterm loop-self loop-port-zero loop-echo-port loop-broadcast upper-text upper-split upper-invalid upper-end upper-udp') list=1 ;;
        'check --format') offer=(-W 'text tap json') ;;
        'compare --design') offer=(-W 'event-loop threaded iterative') list=1 ;;
        'compare -o' | 'compare --output') offer=(-d) ;;
        'load -m' | 'load --mode') offer=(-W 'ping-pong stream churn idle') ;;
        'load -f' | 'load --framing') offer=(-W 'raw lines length') ;;
        'load --pattern') offer=(-W 'text binary') ;;
        'load --figure') offer=(-f) ;;
        'merge --figure') offer=(-f) ;;
        'ping -f' | 'ping --framing') offer=(-W 'raw lines length') ;;
        'ping --pattern') offer=(-W 'text binary') ;;
        'ping --figure') offer=(-f) ;;
        'send -f' | 'send --framing') offer=(-W 'raw lines length') ;;
        'states --start') offer=(-c) ;;
        'states --design') offer=(-W 'event-loop threaded iterative') ;;
        'states --framing') offer=(-W 'raw lines length') ;;
        'states --segments') offer=(-W 'auto always never') ;;
        'states --figure') offer=(-f) ;;
    esac
    if [[ " $takes " != *" $prev "* ]]; then
        # No value of a flag. Of the others, the first may be another thing than those behind it.
        offer=("${first[@]}")
        for ((index = ${#command} > 0 ? 2 : 1; index < COMP_CWORD; index++)); do
            word=${COMP_WORDS[index]}
            if [[ " $takes " == *" $word "* ]]; then
                [[ ${COMP_WORDS[index + 1]} != = ]] || ((index++))
                ((index++))
            elif [[ $word != -* ]]; then
                offer=("${more[@]}")
            fi
        done
        if [[ $cur == -* ]]; then
            offer=(-W "$flags")
        fi
    elif [[ -n $list && $cur == *,* ]]; then
        prefix=${cur%,*},
        cur=${cur##*,}
    fi
    COMPREPLY=()
    ((${#offer[@]} > 0)) || return
    case ${offer[0]} in
        # Bash itself knows how to quote these.
        -f) compopt -o default ;;
        -d) compopt -o dirnames ;;
        *)
            while IFS= read -r word; do
                COMPREPLY+=("$prefix$word")
            done < <(compgen "${offer[@]}" -- "$cur")
            ;;
    esac
}
complete -F _evecho evecho
