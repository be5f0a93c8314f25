package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func addJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON, for scripts")
}

func printJSON(cmd *cobra.Command, value any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

// printEach prints each name that do gives to print, at once or at the end as a list in JSON: also those before an error of do.
func printEach(cmd *cobra.Command, asJSON bool, do func(print func(name string) error) error) error {
	if !asJSON {
		return do(func(name string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), name)
			return err
		})
	}
	names := []string{}
	err := do(func(name string) error {
		names = append(names, name)
		return nil
	})
	return errors.Join(err, printJSON(cmd, names))
}

// table prints rows in columns.
func table(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirmed asks a question on a terminal, and reports whether the answer is yes. A signal ends the wait.
func confirmed(cmd *cobra.Command, question string) (bool, error) {
	if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question); err != nil {
		return false, err
	}
	type result struct {
		line string
		err  error
	}
	answered := make(chan result, 1)
	go func() { // a read of a terminal cannot be ended: it goes on until there is a line, or the process ends
		line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answered <- result{line, err}
	}()
	select {
	case <-cmd.Context().Done():
		return false, context.Cause(cmd.Context())
	case answer := <-answered:
		if answer.err != nil && !errors.Is(answer.err, io.EOF) {
			return false, answer.err
		}
		word := strings.ToLower(strings.TrimSpace(answer.line))
		return word == "y" || word == "yes", nil
	}
}

// orDash is s, or a dash where there is nothing to say.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
