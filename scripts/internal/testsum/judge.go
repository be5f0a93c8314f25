package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is an event of test2json (see `go doc test2json`), or a build event of `go help buildjson`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build event
	Test       string
	Output     string
	Elapsed    float64 // in seconds, of a test that has ended
}

type testID struct{ pkg, test string }

func (id testID) String() string { return strings.TrimSpace(id.pkg + " " + id.test) }

// judge counts results and prints the output of failed and skipped tests, and the lines of packages.
type judge struct {
	out     io.Writer
	allowed func(id testID, output string) bool

	sum     counts
	output  map[testID]*strings.Builder // of tests that have not ended
	parents map[testID]bool             // tests that have subtests, which are counted in their stead
	skipped []string
	failed  []string
	fuzzed  string // how far a fuzz test was when it last said so
	slow    []timed
}

// timed is a test that took long.
type timed struct {
	id      testID
	seconds float64
}

const (
	slowSeconds = 15 // a test that takes as long is shown at the end
	slowShown   = 8  // at most so many are
	maxReasons  = 20 // lines that tell why a test failed
)

func newJudge(out io.Writer, allowed func(testID, string) bool) *judge {
	return &judge{
		out:     out,
		allowed: allowed,
		output:  make(map[testID]*strings.Builder),
		parents: make(map[testID]bool),
	}
}

// read handles events until the end of r. Lines that are no events are printed as they are.
func (j *judge) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				j.handle(e)
			} else {
				fmt.Fprint(j.out, line)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (j *judge) handle(e event) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(j.out, e.Output)
	case "build-fail":
		j.fail(testID{e.ImportPath, "[build]"})
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			j.parents[testID{e.Package, e.Test[:i]}] = true
		}
	case "output":
		if strings.HasPrefix(e.Output, "fuzz: ") {
			j.fuzzed = e.Output
			return
		}
		if e.isResult() {
			fmt.Fprint(j.out, j.fuzzed, e.Output)
			j.fuzzed = ""
			return
		}
		b := j.output[id]
		if b == nil {
			b = new(strings.Builder)
			j.output[id] = b
		}
		b.WriteString(e.Output)
	case "pass":
		if e.Test != "" && !j.parents[id] {
			j.sum.passed++
			if e.Elapsed >= slowSeconds {
				j.slow = append(j.slow, timed{id, e.Elapsed})
			}
		}
		delete(j.output, id)
	case "skip":
		j.skip(id)
	case "fail":
		if e.Test == "" {
			j.failPackage(e.Package)
			return
		}
		text := j.flush(id)
		// A test fails with its subtests; it is named only if the fault is its own.
		if !j.parents[id] || !j.failedBelow(id) {
			j.fail(id)
			j.sum.faults = append(j.sum.faults, reasons(text)...)
		}
	}
}

// failedBelow tells whether a subtest of the test has failed, or was skipped.
func (j *judge) failedBelow(id testID) bool {
	below := func(other string) bool { return strings.HasPrefix(other, id.String()+"/") }
	return slices.ContainsFunc(j.failed, below) || slices.ContainsFunc(j.skipped, below)
}

// isResult tells the line that says how a package did, which is shown at once.
func (e event) isResult() bool {
	return e.Test == "" && (strings.HasPrefix(e.Output, "ok  \t") || strings.HasPrefix(e.Output, "FAIL\t"))
}

// skip judges a test or a package that was skipped. Only packages without tests are skipped as a whole.
func (j *judge) skip(id testID) {
	defer delete(j.output, id)
	if id.test == "" {
		return
	}
	var text string
	if b := j.output[id]; b != nil {
		text = b.String()
	}
	if j.allowed(id, text) {
		j.sum.elsewhere++
		return
	}
	j.flush(id)
	j.sum.failed++
	j.skipped = append(j.skipped, id.String())
	j.sum.faults = append(j.sum.faults, "skipped, which counts as a failure: "+id.String())
}

// failPackage ends a package that failed. It shows the output of tests that did not end: a panic or a timeout hits
// them all, and only their output tells which test is at fault.
func (j *judge) failPackage(pkg string) {
	var unfinished []testID
	for id := range j.output {
		if id.pkg == pkg && id.test != "" {
			unfinished = append(unfinished, id)
		}
	}
	slices.SortFunc(unfinished, func(a, b testID) int { return strings.Compare(a.test, b.test) })
	for _, id := range unfinished {
		j.flush(id)
		j.fail(testID{id.pkg, id.test + " [did not end]"})
	}
	j.flush(testID{pkg: pkg})
	if !slices.ContainsFunc(j.failed, func(f string) bool { return strings.HasPrefix(f, pkg) }) {
		j.fail(testID{pkg: pkg})
	}
}

func (j *judge) fail(id testID) {
	j.sum.failed++
	j.failed = append(j.failed, id.String())
	j.sum.faults = append(j.sum.faults, "failed: "+id.String())
}

// flush prints a test's output, and returns it.
func (j *judge) flush(id testID) (text string) {
	if b := j.output[id]; b != nil {
		text = b.String()
		fmt.Fprint(j.out, text)
		delete(j.output, id)
	}
	return text
}

// reasons are the lines of a failed test's output that testify writes of its first fault.
func reasons(output string) (lines []string) {
	for line := range strings.Lines(output) {
		if len(lines) == 0 && !strings.Contains(line, "\tError Trace:") {
			continue
		}
		if lines = append(lines, strings.TrimRight(line, "\n")); len(lines) == maxReasons || strings.Contains(line, "\tTest:") {
			break
		}
	}
	return lines
}

// finish prints slow tests and faults, if there are any, and returns the numbers.
func (j *judge) finish() counts {
	slices.SortStableFunc(j.slow, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range j.slow[:min(slowShown, len(j.slow))] {
		fmt.Fprintf(j.out, "took %.0f s: %s\n", t.seconds, t.id)
	}
	for _, fault := range j.sum.faults {
		fmt.Fprintln(j.out, fault)
	}
	if j.sum.elsewhere > 0 {
		fmt.Fprintln(j.out, "left out here, by the list of allowed skips:", j.sum.elsewhere)
	}
	return j.sum
}
