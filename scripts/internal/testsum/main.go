// Testsum reads the output of `go test -json`, prints the parts of interest to a person, and judges the result.
// Unlike `go test` it fails when a test was skipped, because a skipped test proves nothing. A test may only be
// skipped if it is in the list of allowed skips, or says that it runs elsewhere.
//
// Usage:
//
//	testsum [-allow FILE] [-elsewhere] [-counts FILE] [-- go test -json ...]
//	testsum -total -counts FILE
//
// The first form runs the command, which must print test2json events, or reads them from its standard input. It ends
// with the line "N passed, N failed". With -counts it adds the numbers and the faults to the file instead. From that the
// second form makes the line for several runs, below a list of all faults.
//
// The exit code is that of the command. If that was 0, it is 1 if a test was skipped that may not be, or if no test
// ran.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/cowshed/cowshed/internal/testfs"
)

func main() {
	code, err := run(os.Args[1:], os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(args []string, in io.Reader, out io.Writer) (code int, err error) {
	flags := flag.NewFlagSet("testsum", flag.ContinueOnError)
	allowFile := flags.String("allow", "", "`file` with the tests that may be skipped: one a line, package and test name; # starts a comment")
	elsewhere := flags.Bool("elsewhere", false, "allow skips of tests that say that they run in the ZFS test machine")
	countsFile := flags.String("counts", "", "`file` to which the numbers are added")
	total := flags.Bool("total", false, "print the sum of the numbers in the counts file")
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if *total {
		sum, err := readCounts(*countsFile)
		if err != nil {
			return 0, err
		}
		for _, fault := range sum.faults {
			fmt.Fprintln(out, fault)
		}
		fmt.Fprintln(out, sum)
		return exitCode(sum), nil
	}

	allowed, err := readAllowed(*allowFile)
	if err != nil {
		return 0, err
	}
	j := newJudge(out, func(id testID, output string) bool {
		return allowed[id] || *elsewhere && strings.Contains(output, testfs.ElsewhereReason)
	})
	commandCode, err := judgeCommand(j, flags.Args(), in)
	if err != nil {
		return 0, err
	}
	sum := j.finish()
	if *countsFile == "" {
		fmt.Fprintln(out, sum)
	} else {
		fmt.Fprintf(out, "%s in this step\n", sum)
		if err := addCounts(*countsFile, sum); err != nil {
			return 0, err
		}
	}
	if commandCode != 0 {
		return commandCode, nil
	}
	return exitCode(sum), nil
}

// judgeCommand judges the output of the command, or in if there is no command, and returns the exit code of the
// command.
func judgeCommand(j *judge, command []string, in io.Reader) (int, error) {
	if len(command) == 0 {
		return 0, j.read(in)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	readErr := j.read(stdout)
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), readErr
	}
	return 0, errors.Join(readErr, err)
}

// exitCode is 1 for a result that is not a success.
func exitCode(c counts) int {
	if c.failed > 0 || c.passed == 0 {
		return 1
	}
	return 0
}

// readAllowed reads the list of tests that may be skipped.
func readAllowed(name string) (map[testID]bool, error) {
	allowed := make(map[testID]bool)
	if name == "" {
		return allowed, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		switch len(fields) {
		case 0:
		case 2:
			allowed[testID{fields[0], fields[1]}] = true
		default:
			return nil, fmt.Errorf("%s: %q is not a package and a test name", name, line)
		}
	}
	return allowed, nil
}

// counts are the numbers of tests by result.
type counts struct {
	passed, failed, elsewhere int
	faults                    []string // lines that name them
}

// String gives the closing line of a run.
func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed", c.passed, c.failed)
}

// faultMark begins the line of a fault in a file of counts. The other lines have three numbers.
const faultMark = "-"

// addCounts appends to a file of counts.
func addCounts(name string, c counts) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	var lines strings.Builder
	fmt.Fprintln(&lines, c.passed, c.failed, c.elsewhere)
	for _, fault := range c.faults {
		fmt.Fprintln(&lines, faultMark, fault)
	}
	_, err = f.WriteString(lines.String())
	return errors.Join(err, f.Close())
}

// readCounts adds up a file of counts. A file that is not there holds none.
func readCounts(name string) (counts, error) {
	var sum counts
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fault, ok := strings.CutPrefix(lines.Text(), faultMark+" "); ok {
			sum.faults = append(sum.faults, fault)
			continue
		}
		var c counts
		if _, err := fmt.Sscan(lines.Text(), &c.passed, &c.failed, &c.elsewhere); err != nil {
			return sum, fmt.Errorf("%s: %q: %w", name, lines.Text(), err)
		}
		sum.passed, sum.failed, sum.elsewhere = sum.passed+c.passed, sum.failed+c.failed, sum.elsewhere+c.elsewhere
	}
	return sum, lines.Err()
}
