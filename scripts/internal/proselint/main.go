// Command proselint checks the words of comments, documents and help texts by the rules of CONTRIBUTING.md that a program
// can check. It prints each fault as "file:line: rule: sentence", and exits with 1 if there is one.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// measured begins the names of documents that the benchmarks write.
const measured = "docs/benchmarks"

func main() {
	exempt := flag.String("exempt", "", "`FILE` with the names of files that are not clean yet, one a line")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: proselint [-exempt FILE] FILE...\n\n"+
			"Checks the comments of Go files, the help texts of Go files below cmd/, and Markdown files.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	names, err := readNames(*exempt)
	if err == nil {
		var faults int
		if faults, err = run(os.Stdout, flag.Args(), names); err == nil && faults > 0 {
			err = fmt.Errorf("%d faults", faults)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "proselint: %v\n", err)
		os.Exit(1)
	}
}

// readNames reads a list of files. Empty lines and lines that begin with # do not count.
func readNames(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
			names = append(names, line)
		}
	}
	return names, lines.Err()
}

// run checks the files, and prints and counts the faults. A clean file among the exempt ones is a fault too, so that the
// list can only become shorter.
func run(out io.Writer, files, exempt []string) (faults int, err error) {
	fault := func(format string, args ...any) {
		faults++
		fmt.Fprintf(out, format+"\n", args...)
	}
	for _, name := range exempt {
		if !slices.Contains(files, name) {
			fault("%s: exempt, but not among the files", name)
		}
	}
	for _, file := range files {
		if strings.HasPrefix(file, measured) {
			continue
		}
		passages, err := passagesOf(file)
		if err != nil {
			return faults, err
		}
		found := check(passages)
		switch {
		case slices.Contains(exempt, file) && len(found) == 0:
			fault("%s: clean: delete it from the list of exempt files", file)
		case slices.Contains(exempt, file):
		default:
			for _, f := range found {
				fault("%s:%d: %s: %s", file, f.line, f.rule, f.sentence)
			}
		}
	}
	return faults, nil
}

// passagesOf reads the text of a file.
func passagesOf(file string) ([]passage, error) {
	switch filepath.Ext(file) {
	case ".go":
		return goPassages(file)
	case ".md":
		return markdownPassages(file)
	}
	return nil, fmt.Errorf("%s is neither a Go file nor a Markdown file", file)
}
