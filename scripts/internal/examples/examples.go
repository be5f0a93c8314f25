// Package examples finds public packages of a tree that have no example, and examples that nothing runs.
package examples

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// private are directories that hold no public packages.
var private = []string{".git", "bench", "bin", "cmd", "dist", "e2e", "internal", "scripts", "testdata"}

// compiledOnly is in the comment of an example that is not to be run.
const compiledOnly = "compiled only"

// Faults lists the faults of the tree at root, as "package: fault".
func Faults(root string) ([]string, error) {
	var faults []string
	err := filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		case slices.Contains(private, entry.Name()):
			return filepath.SkipDir
		}
		found, err := faultsOf(dir)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, dir)
		for _, fault := range found {
			faults = append(faults, name+": "+fault)
		}
		return err
	})
	return faults, err
}

// faultsOf lists the faults of the package in a directory.
func faultsOf(dir string) ([]string, error) {
	public, tests, err := parse(dir)
	if err != nil || !public {
		return nil, err
	}
	all := doc.Examples(tests...)
	if len(all) == 0 {
		return []string{"no Example"}, nil
	}
	run := runByTests(tests)
	var faults []string
	for _, example := range all {
		name := "Example" + example.Name
		isRun := example.Output != "" || example.EmptyOutput || run[name]
		if !isRun && !strings.Contains(example.Doc, compiledOnly) {
			faults = append(faults, fmt.Sprintf("nothing runs %s: it has no Output, and testfs.Example does not call it", name))
		}
	}
	return faults, nil
}

// parse reads the Go files of a directory. It reports whether they are a package that exports something.
func parse(dir string) (public bool, tests []*ast.File, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, nil, err
	}
	files := token.NewFileSet()
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".go" {
			continue
		}
		file, err := parser.ParseFile(files, filepath.Join(dir, entry.Name()), nil, parser.ParseComments)
		switch {
		case err != nil:
			return false, nil, err
		case strings.HasSuffix(entry.Name(), "_test.go"):
			tests = append(tests, file)
		case file.Name.Name != "main" && ast.FileExports(file):
			public = true
		}
	}
	return public, tests, nil
}

// runByTests has the names of the functions that tests give to testfs.Example.
func runByTests(tests []*ast.File) map[string]bool {
	run := make(map[string]bool)
	for _, file := range tests {
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			called, isMethod := call.Fun.(*ast.SelectorExpr)
			example, isName := call.Args[1].(*ast.Ident)
			if isMethod && isName && called.Sel.Name == "Example" {
				run[example.Name] = true
			}
			return true
		})
	}
	return run
}
