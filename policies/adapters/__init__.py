"""Our policies behind other people's interfaces."""
