#!/usr/bin/env bash
#
# Makes a root filesystem as a freshly installed machine has it, and runs commands in it. See usage below.

set -euo pipefail

usage() {
	cat <<'END'
Usage: debian-root.sh make DIR
       debian-root.sh enter DIR [--bind PATH[:AT]]... [--bind-ro PATH[:AT]]... [--env NAME=VALUE]... -- COMMAND...

  make   makes in DIR, with mmdebstrap, a minimal root filesystem of this host's release of Debian or Ubuntu, with what
         the README asks for besides Go: make and git, and ca-certificates to download anything. It uses the package
         archives, proxies and certificates that this host is configured with.
  enter  runs the command with DIR as its root, in mount and process namespaces that end with it. It has the devices,
         /sys, the network and the Go of this host, and of its environment what Go and the proxies are set to.

Options of enter:
  --bind PATH[:AT]     shows PATH of this host at AT, by default at the same path
  --bind-ro PATH[:AT]  the same, read-only
  --env NAME=VALUE     sets a variable

Both need root.
Exit codes: 0 done; 1 failed; 2 wrong usage; enter exits with the command's own.
END
}

readonly wanted=(make git ca-certificates)
# What the environment of this host may say about Go and the network.
readonly variables=(
	GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE GOINSECURE GOFLAGS GOTOOLCHAIN
	http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY TERM
)

die() {
	printf 'debian-root.sh: %s\n' "$*" >&2
	exit 1
}

# sources: prints the archives of the distribution that apt is configured with, in whatever form that is written.
sources() {
	local codename targets origin uri release suite components entry keyring
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016 # the variables are apt's
	targets=(indextargets 'Created-By: Packages' --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(SOURCESENTRY)|$(COMPONENT)')
	apt-get "${targets[@]}" | grep -qE '^(Debian|Ubuntu)[|]' || apt-get -q update >&2
	apt-get "${targets[@]}" | sort -u | while IFS='|' read -r origin uri release suite entry components; do
		[[ ($origin == Debian || $origin == Ubuntu) && $suite == "$codename"* && $components == main ]] || continue
		keyring=$(sed -nE 's/^[^#]*signed-by[:=] *([^] ]+).*/\1/Ip' "${entry%:*}" | head -n 1)
		echo "deb${keyring:+ [signed-by=$keyring]} $uri $release main"
	done | sort -u
}

# make_root DIR: see usage.
make_root() {
	local dir=$1 list setting keyring options=()
	command -v mmdebstrap >/dev/null || die 'mmdebstrap is missing: scripts/deps.sh gates'
	list=$(sources)
	[[ -n $list ]] || die 'apt is configured with no archive of Debian or Ubuntu'
	while read -r setting; do
		options+=("--aptopt=$setting")
	done < <(apt-config dump | grep -E '^Acquire::(https?::|Check-|Retries|ForceIPv)' || true)
	while read -r keyring; do
		options+=("--setup-hook=mkdir -p \"\$1\"${keyring%/*} && cp $keyring \"\$1\"$keyring")
	done < <(sed -nE 's/.*signed-by=(\/[^] ]+).*/\1/p' <<<"$list" | sort -u)
	if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
		# shellcheck disable=SC2016 # $1 is for mmdebstrap's shell
		options+=('--customize-hook=cp /usr/local/share/ca-certificates/*.crt "$1"/usr/local/share/ca-certificates/ && chroot "$1" update-ca-certificates')
	fi
	printf -v setting '%s,' "${wanted[@]}"
	# shellcheck source=/dev/null
	mmdebstrap --quiet --mode=root --variant=minbase --include="${setting%,}" "${options[@]}" \
		"$(. /etc/os-release && echo "$VERSION_CODENAME")" "$dir" - <<<"$list" >&2
}

# enter DIR OPTION... -- COMMAND...: see usage.
enter() {
	local dir name values=() goroot
	dir=$(readlink -f -- "$1")
	shift
	[[ -x $dir/bin/sh ]] || die "$dir is no root filesystem: debian-root.sh make $dir"
	goroot=$(go env GOROOT)
	local options=(--bind-ro "$goroot:/usr/local/go")
	while [[ ${1:-} != -- ]]; do
		case ${1:-} in
		--bind | --bind-ro) options+=("$1" "${2:?}") ;;
		--env) values+=("${2:?}") ;;
		*)
			usage >&2
			exit 2
			;;
		esac
		shift 2
	done
	shift
	for name in "${variables[@]}"; do
		[[ -z ${!name:-} ]] || values+=("$name=${!name}")
	done
	values+=(PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8)
	unshare --mount --pid --fork --kill-child --propagation=private \
		"${BASH_SOURCE[0]}" inside "$dir" "${options[@]}" -- env -i "${values[@]}" "$@"
}

# inside DIR OPTION... -- COMMAND...: in namespaces of its own, makes DIR the root and becomes the command.
inside() {
	local dir=$1 from at flags
	shift
	mount --bind "$dir" "$dir"
	for at in dev sys; do
		mount --rbind "/$at" "$dir/$at"
	done
	mount -t proc proc "$dir/proc"
	mount -t tmpfs -o mode=755 tmpfs "$dir/run"
	cp -L /etc/resolv.conf /etc/hosts "$dir/etc/"
	while [[ $1 != -- ]]; do
		from=${2%%:*} at=$dir${2##*:}
		flags=bind
		[[ $1 != --bind-ro ]] || flags=bind,ro
		if [[ -d $from ]]; then mkdir -p "$at"; else mkdir -p "${at%/*}" && touch "$at"; fi
		mount -o "$flags" "$from" "$at"
		shift 2
	done
	shift
	# Mounts of this host are not to be seen or kept from being unmounted.
	cd "$dir"
	mkdir -p "$dir/mnt"
	pivot_root . mnt
	umount -l /mnt
	cd /root
	"$@"
}

[[ ${1:-} != -h && ${1:-} != --help && ${1:-} != help ]] || {
	usage
	exit
}
case $#:${1:-} in
2:make) make_root "$2" ;;
[3-9]:enter | [1-9][0-9]*:enter) enter "${@:2}" ;;
*:inside) inside "${@:2}" ;;
*)
	usage >&2
	exit 2
	;;
esac
