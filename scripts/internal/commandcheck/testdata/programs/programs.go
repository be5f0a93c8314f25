// Package programs runs programs in the ways that the tree does.
package programs

import (
	"context"
	"os/exec"
	"path/filepath"
)

const constant = "from-constant"

type scenario struct {
	name, script string
	more         []string
}

var scenarios = []scenario{
	{"positional", "in-script-1 | in-script-2", nil},
	{name: "named", script: `[ -e x ] || in-script-3 "$(in-script-4)"`},
}

func run(name string, args ...string) error { return exec.Command(name, args...).Run() }

func runAll(command ...string) error { return exec.Command(command[0], command[1:]...).Run() }

func shell(script string) error { return exec.Command("sh", "-euc", "prepare; "+script).Run() }

func all(ctx context.Context, unknown func() string) error {
	_ = exec.CommandContext(ctx, "literal", "not-a-program").Run()
	_ = exec.Command(constant).Run()
	_ = run("through-helper", "not-a-program")
	_ = runAll("through-variadic", "not-a-program")
	for _, args := range [][]string{{"in-list", "not-a-program"}, {"in-list-too"}} {
		_ = exec.Command(args[0], args[1:]...).Run()
	}
	for _, tool := range []string{"alternative-1", "alternative-2"} {
		_, _ = exec.LookPath(tool)
	}
	for _, s := range scenarios {
		_ = shell(s.script)
	}
	found, err := exec.LookPath(filepath.Join("/usr/sbin", "looked-up"))
	if err != nil {
		return err
	}
	_ = exec.Command(found).Run()
	_ = exec.Command("/proc/self/exe").Run()
	return exec.Command(unknown()).Run()
}
