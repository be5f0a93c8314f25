// Command sandbox forks a root filesystem many times, runs a command in each fork, and merges the fork of the best score into
// the base. It removes everything that it made, also after Ctrl-C. README.md shows a run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/cowshed/cowshed/quota"
)

const usage = `Usage: sandbox -root ROOT -dir DIR [FLAGS] COMMAND [ARGUMENT...]

Forks a root filesystem, and runs the command in each fork. A command that succeeds prints its score, a number, as the
last line of its output. The changes of the fork with the highest score are merged into the base. SANDBOX_FORK is the
number of the fork, from 1.

`

// options are the values of the flags.
type options struct {
	root    string
	dir     string
	forks   int
	jobs    int
	limit   uint64
	timeout time.Duration
	runtime string
	diffs   string
	command []string
}

func main() {
	opts, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		err = run(ctx, opts, os.Stdout)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("sandbox", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.root, "root", "", "the root filesystem: a `directory`, or an uncompressed tar")
	flags.StringVar(&o.dir, "dir", "", "`directory` on btrfs, for the layers")
	flags.IntVar(&o.forks, "forks", 100, "number of forks")
	flags.IntVar(&o.jobs, "jobs", runtime.NumCPU(), "number of commands that run at once")
	flags.DurationVar(&o.timeout, "timeout", time.Minute, "time after which a command is killed")
	flags.StringVar(&o.diffs, "diffs", "", "`directory` that gets the changes of each fork as a layer tar")
	flags.StringVar(&o.runtime, "runtime", "", "program that runs the commands: unshare or runc (default runc if it is in PATH)")
	limit := flags.String("limit", "256M", "the most that the command of a fork may write, such as 256M")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.command = flags.Args()
	if o.runtime == "" {
		o.runtime = chooseRuntime()
	}
	var err error
	o.limit, err = quota.ParseSize(*limit)
	switch {
	case err != nil:
		return o, fmt.Errorf("-limit: %w", err)
	case o.root == "" || o.dir == "" || len(o.command) == 0:
		return o, errors.New("-root, -dir and a command are needed; see -help")
	case o.forks < 1 || o.jobs < 1 || o.limit == 0:
		return o, errors.New("-forks, -jobs and -limit are 1 or more")
	case o.runtime != unshareProgram && o.runtime != runcProgram:
		return o, fmt.Errorf("-runtime %q: say %s or %s", o.runtime, unshareProgram, runcProgram)
	}
	return o, nil
}

// chooseRuntime chooses the program that runs the commands.
func chooseRuntime() string {
	if _, err := exec.LookPath(runcProgram); err == nil {
		return runcProgram
	}
	return unshareProgram
}
