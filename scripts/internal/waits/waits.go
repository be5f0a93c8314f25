// Package waits finds tests that wait for something no longer than a number of seconds. Such a number measures the machine: it fails
// on a busy one. Tests wait for testfs.Patience, or for a bound that has a name.
package waits

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
)

// Faults lists the calls of Eventually and its like in the tree at root whose bound is a number, as "file:line".
func Faults(root string) ([]string, error) {
	var faults []string
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == ".git":
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(file) != ".go":
			return nil
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		for _, at := range numbers(parsed) {
			faults = append(faults, fmt.Sprintf("%s:%d", name, files.Position(at).Line))
		}
		return err
	})
	return faults, err
}

// numbers lists the bounds of a file's waits that are numbers.
func numbers(file *ast.File) (at []token.Pos) {
	ast.Inspect(file, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok || len(call.Args) < 3 {
			return true
		}
		called, ok := call.Fun.(*ast.SelectorExpr)
		if ok && strings.HasPrefix(called.Sel.Name, "Eventually") && isNumber(call.Args[2]) {
			at = append(at, call.Args[2].Pos())
		}
		return true
	})
	return at
}

// isNumber reports whether nothing in a duration has a name but its unit.
func isNumber(duration ast.Expr) bool {
	number := true
	ast.Inspect(duration, func(node ast.Node) bool {
		if unit, ok := node.(*ast.SelectorExpr); ok {
			if of, ok := unit.X.(*ast.Ident); ok && of.Name == "time" {
				return false
			}
		}
		if _, ok := node.(*ast.Ident); ok {
			number = false
		}
		return true
	})
	return number
}
