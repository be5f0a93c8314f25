package btrfs
import ("io";"context")
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {return nil}
