package main

import "strings"

// taskRules say under which tasks of deps.sh the files of the tree are run: those of the first prefix that fits.
var taskRules = []struct {
	prefix string
	tasks  []string
}{
	{".ci/", []string{"ci"}},
	{"Makefile", []string{"lint"}}, // the only recipe that runs more than commands of every machine
	{"bench/", []string{"bench"}},
	{"e2e/daemons/", []string{"daemons"}},
	{"cmd/", []string{"test", "demo"}},
	{"packaging/", nil}, // runs where the package is installed
	{"scripts/as-root.sh", []string{"test", "bench", "daemons"}},
	{"scripts/bench.sh", []string{"bench", "daemons"}},
	{"scripts/check-commands.sh", []string{"gates"}},
	{"scripts/internal/commandcheck/", []string{"gates"}},
	{"scripts/daemons.sh", []string{"daemons"}},
	{"scripts/debian-root.sh", []string{"gates"}},
	{"scripts/demo.sh", []string{"demo"}},
	{"scripts/deps.sh", []string{"ci"}},
	{"scripts/fetch-modules.sh", []string{"ci"}},
	{"scripts/fresh-machine.sh", []string{"gates"}},
	{"scripts/internal/release/", []string{"gates"}},
	{"scripts/mkfs-loop.sh", []string{"test", "demo", "bench", "daemons"}},
	{"scripts/retry.sh", []string{"ci"}},
	{"scripts/systemd-machine/checks.sh", nil}, // runs in that machine
	{"scripts/systemd-machine/", []string{"systemd"}},
	{"scripts/test-systemd.sh", []string{"systemd"}},
	{"scripts/test-zfs.sh", []string{"test"}},
	{"scripts/test.sh", []string{"bench", "daemons", "gates"}},
	// zfs-machine.sh installs its needs itself; commands that run in the machine are in the machine.
	{"scripts/zfs-machine/guest-init", nil},
	{"scripts/zfs-machine/power-cut", nil},
	{"", []string{"test"}},
}

func tasksOf(file string) []string {
	for _, rule := range taskRules {
		if strings.HasPrefix(file, rule.prefix) {
			return rule.tasks
		}
	}
	return nil
}
