# What the stubs in tools/ share. Each stands for a program that Debian has not or that a container cannot run: it does
# what it is told to a few lines in files below $state, answers from them, and refuses every call that it does not know.
# $calls has one line for each call of any of them, with its arguments as they arrived.
set -u
state=/srv/state
calls=$state/calls
tool=${0##*/}
mkdir -p "$state"
note() { printf '%s' "$1" >> "$calls" && shift && printf ' <%s>' "$@" >> "$calls" && echo >> "$calls"; }
note "$tool" "$@"
cd "$state" || exit

refuse() {
    echo "$tool: what is $*?" >&2
    exit 64
}

# FILE LINE: whether it is there.
holds() { [ -e "$1" ] && grep -qxF -- "$2" "$1"; }

# FILE LINE...: add those that are not there.
put() {
    file=$1 && shift
    for line; do
        holds "$file" "$line" || echo "$line" >> "$file"
    done
}

# FILE LINE...: take them out; all must be there.
drop() {
    file=$1 && shift
    for line; do
        holds "$file" "$line" || { echo "$tool: no $line" >&2 && exit 1; }
        grep -vxF -- "$line" "$file" > "$file.new"
        mv "$file.new" "$file"
    done
}

# FILE REPLACEMENT: print each line as the replacement has it, where & stands for the line.
each() { [ ! -e "$1" ] || sed "s~.*~$2~" "$1"; }

# FILE REPLACEMENT: the same, as an array in JSON.
array() { each "$1" "$2" | paste -s -d , | sed 's/.*/[&]/'; }

# WORD...: the last one.
last() { shift $(($# - 1)) && echo "$1"; }
