"""Contact sheets: what a teacher sees and says, before a long run or from a finished store."""
