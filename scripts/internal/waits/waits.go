// Package waits finds tests that fail or hang on a busy machine.
//
// A test that waits for something no longer than a number of seconds, or expects that something has taken less, measures the machine.
// Tests wait for testfs.Patience, or for a bound that has a name. A test that ends itself in another goroutine than its own ends that
// goroutine alone, and may wait for it without end. Such a goroutine uses assert, or testfs.Within.
package waits

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Faults lists the faults in the tree at root as "file:line".
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
		for _, at := range slices.Sorted(maps.Keys(faultsOf(parsed))) {
			faults = append(faults, fmt.Sprintf("%s:%d", name, files.Position(at).Line))
		}
		return err
	})
	return faults, err
}

// faultsOf is the set of the faults of a file.
func faultsOf(file *ast.File) map[token.Pos]bool {
	at := make(map[token.Pos]bool)
	ast.Inspect(file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.CallExpr:
			if isNumber(bound(node)) {
				at[bound(node).Pos()] = true
			}
			if called, ok := node.Fun.(*ast.SelectorExpr); ok && called.Sel.Name == "Go" && len(node.Args) == 1 {
				addEnds(at, node.Args[0])
			}
		case *ast.GoStmt:
			addEnds(at, node.Call.Fun)
		case *ast.FuncLit:
			if params := node.Type.Params.List; len(params) > 0 && isName(params[0].Type, "http", "ResponseWriter") {
				addEnds(at, node)
			}
		}
		return true
	})
	return at
}

// bound is how long a call of testify waits for something, or expects it to take at the most. It is nil for other calls.
func bound(call *ast.CallExpr) ast.Expr {
	called, ok := call.Fun.(*ast.SelectorExpr)
	switch {
	case !ok || len(call.Args) < 3:
		return nil
	case strings.HasPrefix(called.Sel.Name, "Eventually"), strings.HasPrefix(called.Sel.Name, "Less") && isCall(call.Args[1], "time", "Since"):
		return call.Args[2]
	}
	return nil
}

// addEnds adds the calls in a function of another goroutine that end a test. A function in it with parameters, such as a subtest, has
// its own.
func addEnds(at map[token.Pos]bool, function ast.Expr) {
	literal, ok := function.(*ast.FuncLit)
	if !ok {
		return
	}
	ast.Inspect(literal.Body, func(node ast.Node) bool {
		if inner, ok := node.(*ast.FuncLit); ok {
			return inner.Type.Params.NumFields() == 0
		}
		if called, ok := node.(*ast.SelectorExpr); ok {
			of, _ := called.X.(*ast.Ident)
			isTest := of != nil && (of.Name == "t" || of.Name == "b" || of.Name == "tb")
			if of != nil && of.Name == "require" || isTest && slices.Contains([]string{"Fatal", "Fatalf", "FailNow"}, called.Sel.Name) {
				at[called.Pos()] = true
			}
		}
		return true
	})
}

func isCall(expr ast.Expr, of, name string) bool {
	call, ok := expr.(*ast.CallExpr)
	return ok && isName(call.Fun, of, name)
}

func isName(expr ast.Expr, of, name string) bool {
	selector, ok := expr.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	in, ok := selector.X.(*ast.Ident)
	return ok && in.Name == of && selector.Sel.Name == name
}

// isNumber reports whether nothing in a duration has a name but its unit.
func isNumber(duration ast.Expr) bool {
	if duration == nil {
		return false
	}
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
