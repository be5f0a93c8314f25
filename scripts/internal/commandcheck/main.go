// Commandcheck finds the commands that the tree runs, and says which of them scripts/deps.sh does not bring.
//
// Usage:
//
//	commandcheck -list [-tree DIR]
//	commandcheck -brought DIR [-tree DIR]
//
// The first form prints each command with the task of deps.sh under which it is run and the places that run it. The
// second reads, for each task, the file DIR/TASK with the commands that a machine has after deps.sh TASK.
// scripts/check-commands.sh makes these files. It prints missing commands, and exits with 1 if there are any.
//
// Commands are found in Go files, where a program or a shell script reaches os/exec, in shell scripts, in the
// Makefile, and in .ci/run. The file known.txt names those that deps.sh need not bring, and programs whose names only
// a run tells.
package main

import (
	"cmp"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
)

// use is a command, or a program of Go whose name only a run tells, at a place that runs it.
type use struct {
	command string // "" if only a run tells
	expr    string // of Go, if only a run tells
	file    string // from the top of the tree
	line    int
}

func (u use) String() string { return fmt.Sprintf("%s:%d", u.file, u.line) }

func main() {
	missing, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "commandcheck:", err)
		os.Exit(2)
	}
	if missing {
		os.Exit(1)
	}
}

func run() (missing bool, err error) {
	tree := flag.String("tree", ".", "the `directory` of the tree")
	list := flag.Bool("list", false, "print the commands")
	brought := flag.String("brought", "", "`directory` with the commands that each task brings")
	flag.Parse()
	known, err := parseKnown(knownText)
	if err != nil {
		return false, err
	}
	uses, err := findUses(*tree)
	if err != nil {
		return false, err
	}
	byTask := make(map[string]map[string][]use)
	for _, u := range uses {
		if known.covers(u) {
			continue
		}
		if u.command == "" {
			fmt.Printf("%s: cannot tell which program %q is: name it in the call, or explain it in known.txt\n", u, u.expr)
			missing = true
			continue
		}
		for _, task := range tasksOf(u.file) {
			if byTask[task] == nil {
				byTask[task] = make(map[string][]use)
			}
			byTask[task][u.command] = append(byTask[task][u.command], u)
		}
	}
	for _, line := range known.unused() {
		fmt.Printf("known.txt: %q covers nothing: remove it\n", line)
		missing = true
	}
	for _, task := range sortedKeys(byTask) {
		var there map[string]bool
		if *brought != "" {
			if there, err = readNames(*brought + "/" + task); err != nil {
				return false, err
			}
		}
		for _, command := range sortedKeys(byTask[task]) {
			if *list {
				fmt.Printf("%s\t%s\t%s\n", task, command, places(byTask[task][command]))
			}
			if there != nil && !there[command] {
				fmt.Printf("deps.sh %s does not bring %s, which %s runs\n", task, command, places(byTask[task][command]))
				missing = true
			}
		}
	}
	return missing, nil
}

// findUses finds everything that the tree runs.
func findUses(tree string) ([]use, error) {
	uses, err := goUses(tree)
	if err != nil {
		return nil, err
	}
	scripts, err := scriptUses(tree)
	if err != nil {
		return nil, err
	}
	uses = append(uses, scripts...)
	slices.SortFunc(uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.command, b.command), cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
	})
	return slices.Compact(uses), nil
}

// places names the first places of some.
func places(uses []use) string {
	const most = 3
	var names []string
	for _, u := range uses[:min(most, len(uses))] {
		names = append(names, u.String())
	}
	if more := len(uses) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

func readNames(file string) (map[string]bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool)
	for name := range strings.FieldsSeq(string(text)) {
		names[name] = true
	}
	return names, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
