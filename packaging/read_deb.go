package packaging

import (
	"errors"
	"io"
)

func readDeb(io.ReaderAt, int64) (Listing, error) { return Listing{}, errors.ErrUnsupported }
